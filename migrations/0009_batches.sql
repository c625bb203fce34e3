-- Batches: exports of several datasets, which are read at one snapshot and completed in one transaction.
--
-- A batch has the id of its first member, in the order of the datasets' names. Only that member has a turn: workers
-- find the batch by it. The others have the turn `infinity`. A release that doesn't know batches must not claim
-- a member alone, so the format of a member has a prefix: such a release leaves formats alone that it doesn't know.
alter table {schema}.exports
  add column batch_id uuid, -- null: an export of its own
  -- The first member has it, as `job::batch::BatchRequest` in JSON: what was asked for, the datasets of all members, and
  -- those that were left out. Null: of every other job.
  add column batch jsonb;

create index exports_batch on {schema}.exports (batch_id, dataset) where batch_id is not null;

-- The text of the batch's manifest, which its last member with files has. It is saved before anybody sees it, so that
-- each process that publishes the member writes the same. Null: not published yet, a file was lost, or retention has
-- removed it.
alter table {schema}.exports add column batch_manifest text;
