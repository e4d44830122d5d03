-- Version 7. Boards: saved panels of a tenant. Nothing but this table has them, so a rebuild does not bring them back.
CREATE TABLE rollmill.boards (tenant text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, version bigint NOT NULL, changed bigint NOT NULL,
  by text NOT NULL, name text NOT NULL, document text NOT NULL, PRIMARY KEY (tenant, id));
COMMENT ON TABLE rollmill.boards IS 'Saved panels of tenants, as JSON; changed by compare-and-set on version.';
