-- store.watermarks.others_of_new
-- Returns the ids of other consumers, if this consumer has no watermark and never had a job; null otherwise.
-- $1 text: the consumer
-- $2 text: the pattern of consumers' ids; rows with other ids were inserted by hand
-- $3 text[]: the consumers that the caller may see; null for all
-- $4 text[]: the datasets that the caller may see; null for all
select case
  when not exists (select from watermarks w where w.consumer_id = $1)
    and not exists (select from cdc_export.lanes l where l.consumer_id = $1)
  then array(
    select other.consumer_id
    from (
      select w.consumer_id, w.dataset from watermarks w
      union
      select l.consumer_id, l.dataset from cdc_export.lanes l) other
    where other.consumer_id ~ $2
      and ($3::text[] is null or other.consumer_id = any ($3))
      and ($4::text[] is null or other.dataset = any ($4))
    group by 1)
  end
