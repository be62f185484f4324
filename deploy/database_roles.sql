-- The roles of the operational database. Run it as a superuser, or as a user with CREATEROLE that owns the database, in
-- that database: before the first migration, or later, also on a database that one user has filled so far. It may be run
-- again at any time.
--
--   psql -v ON_ERROR_STOP=1 -f deploy/database_roles.sql "postgresql://.../operations"
--   psql -c "alter role streams_run password '...'" ...      (each of the three; until then they cannot log in)
--
-- role            Airflow connection     may
-- streams_owner   operations_db_owner    change tables: only prepare_services, which migrates
-- streams_run     operations_db          read and write rows: tasks and the triggerer
-- streams_read    operations_db of the   read rows: pages, and people who look
--                 api-server

begin;

do $$
declare
    role_name text;
    item record;
begin
    foreach role_name in array array['streams_owner', 'streams_run', 'streams_read'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            execute format('create role %I login nosuperuser nocreatedb nocreaterole', role_name);
        end if;
        execute format('grant connect on database %I to %I', current_database(), role_name);
    end loop;
    -- A user that is no superuser may give tables only to a role that it belongs to.
    if not (select rolsuper from pg_roles where rolname = current_user) then
        execute format('grant streams_owner to %I', current_user);
    end if;
    execute format('revoke connect, temporary on database %I from public', current_database());
    -- What one user has created so far belongs to the owner from now on. Sequences of columns follow their tables.
    for item in
        select c.relname from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
            and pg_get_userbyid(c.relowner) <> 'streams_owner'
            and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
    loop
        execute format('alter table public.%I owner to streams_owner', item.relname);
    end loop;
end $$;

revoke create on schema public from public;
grant usage, create on schema public to streams_owner;
grant usage on schema public to streams_run, streams_read;
grant select, insert, update, delete on all tables in schema public to streams_run;
grant select on all tables in schema public to streams_read;
-- Tables that a later migration creates.
alter default privileges for role streams_owner in schema public
    grant select, insert, update, delete on tables to streams_run;
alter default privileges for role streams_owner in schema public grant select on tables to streams_read;
-- A migration that waits for a table names the sessions that use it. Without this right it names only their numbers.
do $$ begin
    grant pg_read_all_stats to streams_owner;
exception when insufficient_privilege then
    raise notice 'streams_owner may not see what other sessions do: grant it pg_read_all_stats as a superuser';
end $$;

commit;
