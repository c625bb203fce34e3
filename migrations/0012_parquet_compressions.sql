-- The compressions of Parquet: `snappy`, `lz4`, and `uncompressed` for none. `none` stays the word for zstd, as every
-- earlier release means it: such a release leaves jobs alone whose compression it doesn't know.
alter table {schema}.exports
  drop constraint compressed_once,
  add constraint compressed_once
    check (format not in ('parquet', 'batch:parquet') or compression not in ('gzip', 'zstd'));
