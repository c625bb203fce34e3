-- After which time the transaction `next` was committed, and the first transaction that can't have been committed
-- earlier.
cross join lateral (
  select
    case
      when seen.at is not null then coalesce(seen.since, unseen.at, seen.at)
      when last_look.at is not null then greatest(unseen.at, last_look.at)
    end as since,
    coalesce(unseen.next_xid, '0'::xid8) as bound
  from last_look
  left join lateral (
    select m.next_xid, m.at, m.since
    from cdc_export.moments m
    where m.next_xid > next.xid and pg_visible_in_snapshot(next.xid, m.snapshot)
    order by m.next_xid, m.at
    limit 1) seen on true
  left join lateral (
    select m.next_xid, m.at
    from cdc_export.moments m
    where (m.next_xid, m.at)
      < (coalesce(seen.next_xid, '18446744073709551615'::xid8), coalesce(seen.at, 'infinity'::timestamptz))
    order by m.next_xid desc, m.at desc
    limit 1) unseen on true) committed
