"""The tables of a shop in a DuckDB file, as an asset that is loaded every five minutes.

CDC_EXPORT_URL is the service, and CDC_EXPORT_KEY its key, if it wants one.
"""

import os

import dagster
import duckdb

from cdc_export import Client
from cdc_export.duckdb import load_duckdb

CONSUMER = "dagster"
FILE = os.environ.get("SHOP_FILE", "shop.duckdb")


# One run at a time loads the file, because DuckDB lets one process write.
@dagster.asset(pool="shop.duckdb", retry_policy=dagster.RetryPolicy(max_retries=3, delay=60))
def shop() -> dagster.MaterializeResult[None]:
    with Client(os.environ["CDC_EXPORT_URL"], os.environ.get("CDC_EXPORT_KEY")) as client:
        # A retry goes on behind what is committed.
        load_duckdb(client, CONSUMER, FILE)
    with duckdb.connect(FILE, read_only=True) as connection:
        tables = connection.sql("select count(*) from cdc_export.positions").fetchall()[0][0]
    return dagster.MaterializeResult(metadata={"tables": tables})


load_shop = dagster.define_asset_job("load_shop", selection=[shop])
definitions = dagster.Definitions(
    assets=[shop],
    jobs=[load_shop],
    schedules=[dagster.ScheduleDefinition(job=load_shop, cron_schedule="*/5 * * * *")],
)
