-- The service's role: no superuser, and owner of its database alone. The database's container runs this when it makes its data.
create role exporter login password 'exporter';
alter database cdc_export owner to exporter;
