-- Version 8. What people decided about events that were set aside is looked for all the time, and must not cost a look at every record.
CREATE INDEX quarantine_settled ON rollmill.quarantine (shard, "offset", idx) INCLUDE (released) WHERE discarded;
