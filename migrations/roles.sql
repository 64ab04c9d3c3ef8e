-- The roles of Easel, and the login with which it serves. `easel migrate` runs this by itself. Where its user may not make
-- roles, a DBA runs it once, in Easel's database and as a superuser: `easel migrate --roles` prints it with the names of
-- the settings. It changes nothing that is there already.
DO $roles$
DECLARE
  owner_name CONSTANT name := 'easel_owner'; -- the user of MIGRATION_DATABASE_URL, who owns the tables
  login_name CONSTANT name := 'easel'; -- the user of DATABASE_URL, who owns nothing
  login_password CONSTANT text := NULL; -- of a login that is made here; set it afterwards where it is NULL
  role_name name;
BEGIN
  -- Roles belong to the whole server: the migration of another database may be making them right now.
  FOREACH role_name IN ARRAY ARRAY['easel_app', 'easel_identity', 'easel_backup'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
      EXCEPTION WHEN duplicate_object OR unique_violation THEN
      END;
    END IF;
    IF NOT pg_has_role(owner_name, role_name, 'SET') THEN
      BEGIN
        EXECUTE format('GRANT %I TO %I WITH SET TRUE, INHERIT FALSE', role_name, owner_name);
      EXCEPTION WHEN unique_violation THEN
      END;
    END IF;
  END LOOP;
  IF login_name = owner_name THEN
    RETURN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login_name) THEN
    BEGIN
      EXECUTE format('CREATE ROLE %I LOGIN PASSWORD %L', login_name, login_password);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
    END;
  END IF;
  FOREACH role_name IN ARRAY ARRAY['easel_app', 'easel_identity'] LOOP
    IF NOT pg_has_role(login_name, role_name, 'SET') THEN
      BEGIN
        EXECUTE format('GRANT %I TO %I WITH SET TRUE, INHERIT FALSE', role_name, login_name);
      EXCEPTION WHEN unique_violation THEN
      END;
    END IF;
  END LOOP;
  -- The login of another Easel on this server may become the same roles: without CONNECT it cannot become them in here.
  IF current_database() <> 'postgres' AND has_database_privilege('public', current_database(), 'CONNECT') AND EXISTS (
    SELECT FROM pg_database WHERE datname = current_database() AND pg_has_role(datdba, 'USAGE')
  ) THEN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
  END IF;
  FOREACH role_name IN ARRAY ARRAY[owner_name, login_name] LOOP
    IF NOT has_database_privilege(role_name, current_database(), 'CONNECT') THEN
      EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role_name);
    END IF;
  END LOOP;
END $roles$;
