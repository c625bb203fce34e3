-- The condition that the consumer of an export `f`, in the lane `l`, has it or had the time to fetch it. A restore may
-- have set the numbers back or left gaps. At worst this keeps an export for longer.
-- $7 is the parameter of `retention/files_past.sql`.
not (f.consumer_id is not null and extract(epoch from clock_timestamp() - f.published_at) < $7
  and case when l.acknowledged is not null then f.number > l.acknowledged
    -- Nobody fetched all of its files, and it is the lane's newest full export or a later one.
    else exists (select from cdc_export.files p where p.job = f.id and p.fetched_at is null)
      and f.number >= coalesce((
        select n.number from exports n
        where n.consumer_id || ' ' || n.dataset || ' ' || n.export_type || ' '
          || case when n.status = 'completed' and n.published_at is null then 'processing' else n.status end
          = f.consumer_id || ' ' || f.dataset || ' full completed'
        order by n.created_at desc, n.id desc limit 1), 0)
    end)
