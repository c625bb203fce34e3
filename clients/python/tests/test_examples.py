"""The examples, imported with the real Airflow and Dagster. Dagster's runs once, against a service."""

import importlib
from pathlib import Path

import pytest
from conftest import Service
from test_duckdb import same

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples_are_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("SHOP_FILE", str(tmp_path / "shop.duckdb"))


def test_airflow_finds_the_dag() -> None:
    pytest.importorskip("airflow")
    dag = importlib.import_module("airflow_dag").load_shop()
    assert dag.dag_id == "load_shop" and dag.task_ids == ["load"]


def test_dagster_loads_the_asset(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dagster = pytest.importorskip("dagster")
    monkeypatch.setenv("CDC_EXPORT_URL", service.url)
    service.tables(5, dagster="v text")
    module = importlib.import_module("dagster_asset")
    result = module.definitions.resolve_job_def("load_shop").execute_in_process()
    assert result.success and isinstance(module.definitions, dagster.Definitions)
    same(service, tmp_path / "shop.duckdb", "dagster")
