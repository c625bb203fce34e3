-- The condition that a committed job `e` is the last member of its batch that has files, or had them. That is known at
-- the commit, and never changes. Such a member ends after all others, so its end is the end of the batch.
e.batch_id is not null and not exists (
  select from exports later
  where later.batch_id = e.batch_id and later.dataset > e.dataset and later.status <> 'skipped')
