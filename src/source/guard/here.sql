-- The state of the table now, to compare a position with. A lateral subquery of one row.
(select pg_current_snapshot() as snapshot, pg_relation_filenode(t.oid) as relfilenode, capture.logged_key, capture.captured,
   (select md5(string_agg(format('%s %s %s', a.attname, a.atttypid, a.atttypmod), ',' order by a.attnum))
    from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped) as table_columns_hash,
   -- Whatever else is compared, by name.
   jsonb_build_object(
     'database', (select d.oid::text from pg_database d where d.datname = current_database()),
     'timeline', cdc_export.timeline(),
     'captured', capture.captured, 'relations', capture.relations, 'functions', capture.functions,
     -- Traces of rows that were written past the triggers while columns were otherwise. An object: of a plain table by the
     -- numbers of its columns, since a table that was a child or a partition for a while shares them with the parent that it
     -- was written through, and both attaching and detaching touch them; of a partitioned table by the oids of its partitions,
     -- since a rename of a key column touches that column in all of them.
     -- A member is an array: the touch, and a hash of what the catalog says of the column now, which explains a touch of any
     -- other kind. Nothing explains a touch of a key column.
     'touches', (select jsonb_object_agg(touched.what, touched.how)
      from (
        select a.attnum::text as what,
          case when a.attname::text = any (capture.logged_key) then jsonb_build_array(a.xmin::text)
            else jsonb_build_array(a.xmin::text, hashtext(format('%s %s %s %s %s %s %s %s %s %s %s %s %s', a.attname, a.atttypid, a.atttypmod,
              a.attnotnull, a.attidentity, a.atthasmissing, a.attstattarget, a.attstorage, a.attacl, a.attoptions, d.oid, a.attcollation,
              -- Postgres has this column since 14.
              to_jsonb(a) ->> 'attcompression') collate "C"))
          end as how
        from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where t.relkind = 'r' and a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
        union all
        select parts.oid, jsonb_build_array(string_agg(a.xmin::text, ',' order by a.attnum))
        from jsonb_object_keys(capture.relations) parts (oid)
        join pg_attribute a on a.attrelid = parts.oid::oid and a.attname = any (capture.logged_key::name[])
        -- Being attached under another table touches the root's alone, and is seen otherwise.
        where t.relkind = 'p' and parts.oid <> t.oid::text
        group by parts.oid) touched)) as guard_state
 offset 0)
