-- The columns of `export_row::JobRow`, of an export `e` of a job `j`. The first export of each job has the request with
-- `datasets`: its text may be long. To be followed by an order by job and dataset.
case when lag(e.dataset) over (partition by e.job order by e.dataset) is null then j.datasets end as datasets,
-- include export_columns.sql
