-- Roles of Rollmill, with the least that each needs. Run it once in Rollmill's database, as a superuser, before the first start; then
-- give passwords with \password, and lay the tables as rollmill_owner with `rollmill store migrate`.
--
-- rollmill_owner   owns schema and tables; migrations only
-- rollmill_writer  store.url: flushes, claims, archive; makes and drops partitions through functions of the owner
-- rollmill_reader  store.read_url: queries
DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['rollmill_owner', 'rollmill_writer', 'rollmill_reader'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
  END LOOP;
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO rollmill_owner, rollmill_writer', current_database());
END $$;
CREATE SCHEMA IF NOT EXISTS rollmill AUTHORIZATION rollmill_owner;
REVOKE ALL ON SCHEMA rollmill FROM PUBLIC;
GRANT USAGE ON SCHEMA rollmill TO rollmill_writer, rollmill_reader;
-- Views for people; GRANT USAGE ON SCHEMA rollmill_views TO a role of yours is all that it needs to read them.
CREATE SCHEMA IF NOT EXISTS rollmill_views AUTHORIZATION rollmill_owner;
REVOKE ALL ON SCHEMA rollmill_views FROM PUBLIC;
GRANT USAGE ON SCHEMA rollmill_views TO rollmill_reader;
