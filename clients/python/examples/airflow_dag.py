"""Keeps a DuckDB file equal to the source, every five minutes.

The connection `cdc_export` of Airflow has the service: its host is the URL, such as http://exports:8080, and its
password the key. One run at a time loads the file, because DuckDB lets one process write.
"""

from datetime import datetime, timedelta

from airflow.sdk import BaseHook, dag, task

CONSUMER = "airflow"
FILE = "/srv/warehouse/shop.duckdb"


@dag(
    schedule=timedelta(minutes=5),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
)
def load_shop() -> None:
    @task
    def load() -> None:
        # Airflow reads this file often, and workers alone need these.
        from cdc_export import Client
        from cdc_export.duckdb import load_duckdb

        service = BaseHook.get_connection("cdc_export")
        with Client(service.host, service.password) as client:
            # A retry goes on behind what is committed.
            load_duckdb(client, CONSUMER, FILE)

    load()


load_shop()
