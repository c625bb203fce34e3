-- The evidence of the destination's marker of the lane about the database. A lateral subquery of one row, with `lane`, consumer
-- and dataset, and `m`, job and sha256 of the marker, null if there is none, and `is_asked`: the caller said what it loaded last,
-- and that was right.
--
-- WAL survives as a prefix. All that an export saw was committed before its own completion: if the last export that was handed
-- out is known as completed, nothing that was handed out is lost, whatever became of the server. An older one that is known says
-- nothing of those since, whose files may be elsewhere. This is a part of the statement that reads the position, although the
-- jobs are the store's: a statement of its own would see another moment than the position.
(select coalesce(m.is_asked, false) or coalesce(m.job = last.id and m.sha256 = last.sha256, false) as vouches,
   not coalesce(m.is_asked, false) and m.job is not null and not exists (
     select from exports e
     where e.id = m.job and e.consumer_id = lane.consumer_id and e.dataset = lane.dataset
       and (e.status = 'completed' and e.sha256 = m.sha256 or e.error_code = 'file_lost')) as denies
 from (select) one
 left join lateral (
   select e.id, e.sha256 from exports e
   where e.consumer_id = lane.consumer_id and e.dataset = lane.dataset and e.status = 'completed'
   order by e.lane_sequence desc limit 1) last on true
 offset 0)
