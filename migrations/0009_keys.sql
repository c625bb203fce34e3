-- API keys. Of a key only its SHA-256 is here: 256 random bits need neither salt nor a slow hash.
create table cdc_export.keys (
  id bigint generated always as identity primary key,
  name text not null,
  prefix text collate "C" not null unique,
  hash bytea not null check (octet_length(hash) = 32),
  consumers text[] check (cardinality(consumers) > 0), -- null: all
  scopes text[] not null check (cardinality(scopes) > 0 and scopes <@ array['export:read', 'export:write', 'admin']),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz, -- null: never
  revoked_at timestamptz,
  last_used_at timestamptz -- within a minute or so
);
-- A name is free again once its key is revoked.
create unique index keys_name on cdc_export.keys (name) where revoked_at is null;
