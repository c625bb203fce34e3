"""The page as people use it, in a real Chromium against the real binary: tests/browser.sh runs it.

The tests share a service and its data, and run in their order: the tour's first export is the first one there is. Every page that
a test opens is watched: an error on its console, a breach of its policy, a request to another host or one that fails fails the
test, unless it says that it expects it.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback

import browser_tour
from browser_service import PATIENCE, Service, Watched, wait_for
from playwright.sync_api import expect, sync_playwright

ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# A page waits for its own look at the tables: it shows no earlier one, which the next poll would mend.
PATIENT = "service.patience=time:20000"


def pictures(browser, service, folder):
    """page.png, page-narrow.png and page-job.png, of a service that has done something."""
    users = """insert into users (name, email, created_at, updated_at)
               select 'User ' || n, 'user' || n || '@example.com', t, t
               from generate_series(1, 48000) n, lateral (select now() - interval '7 h' - n * interval '1 s' as t) x"""
    change = "update users set updated_at = now() - interval '{} min' where id % {} = 0"
    service.export("full", "archive")
    service.sql("truncate users;" + users)
    job = service.call("POST", "/exports/delta", {"X-Consumer-ID": "archive"})["jobId"]
    service.call("GET", f"/exports/{job}?wait=60")
    for consumer in ("search", "warehouse"):
        service.export("full", consumer)
    parts = (90, 40, 300, 17, 60, 25, 500, 12, 33, 70, 21, 45)
    for place, part in enumerate(parts):
        service.sql(change.format((len(parts) - place) * 29, part))
        service.export("delta" if part % 2 == 0 else "incremental", "search")
        if part % 5 == 0:
            service.export("delta", "warehouse")
    service.sql(change.format(3, 130))
    # The exports of an afternoon, not of a minute.
    service.sql(
        """with o as (select id, row_number() over (order by id desc) * interval '17 min' as away from cdc_export.jobs),
             e as (update cdc_export.exports e set finished_at = e.finished_at - away from o where o.id = e.job)
           update cdc_export.jobs j set created_at = j.created_at - away, started_at = j.started_at - away
           from o where o.id = j.id"""
    )
    service.stop()
    service.start(FAILPOINTS=f"sink.write=sleep:60000@14,{PATIENT}")
    running = service.call("POST", "/exports/full", {"X-Consumer-ID": "warehouse"})["jobId"]
    wait_for("it is in its middle", lambda: service.call("GET", f"/exports/{running}")["progress"] > 20)
    for name, width, height, scheme, where in (
        ("page", 1280, 1130, "light", "#/"),
        ("page-narrow", 400, 860, "light", "#/"),
        ("page-job", 1280, 840, "dark", f"#/jobs/{running}"),
    ):
        watch = Watched(browser, service, viewport={"width": width, "height": height}, color_scheme=scheme)
        watch.page.goto(f"{service.url}/{where}")
        expect(watch.page.locator("#connection")).to_have_text("live")
        expect(watch.page.get_by_role("progressbar").first).to_be_visible()
        watch.page.wait_for_timeout(1000)
        watch.page.screenshot(path=f"{folder}/{name}.png")
        watch.close()
    service.call("POST", f"/exports/{running}/cancel")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--pictures", metavar="FOLDER")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    tests = [(name, test) for name, test in vars(browser_tour).items() if name.startswith("test_")]
    chosen = [(n, t) for n, t in tests if not options.words or any(word in n for word in options.words)]
    service = Service(options.binary)
    expect.set_options(timeout=PATIENCE)
    begun = time.monotonic()
    failed = []
    try:
        # The first export stops in its middle, for the tour to see it there.
        service.start(**({} if options.pictures else {"FAILPOINTS": f"sink.write=sleep:4000@12,{PATIENT}"}))
        with sync_playwright() as playwright:
            arguments = ARGUMENTS + (["--no-sandbox"] if os.getuid() == 0 else [])
            browser = playwright.chromium.launch(executable_path=options.chromium, args=arguments)
            if options.pictures:
                pictures(browser, service, options.pictures)
                return 0
            for name, test in chosen:
                watch = Watched(browser, service)
                started = time.monotonic()
                try:
                    test(watch, service)
                    watch.close()
                    verdict = "ok"
                except Exception:  # noqa: BLE001, whatever it is: the others are run all the same
                    print("\n".join(traceback.format_exc(limit=2).splitlines()[:24]), file=sys.stderr)
                    verdict = "FAILED"
                    failed.append(name)
                    with contextlib.suppress(Exception):
                        print(watch.complaints, file=sys.stderr)
                        watch.page.screenshot(path=f"{tempfile.gettempdir()}/{name}.png", full_page=True)
                        watch.context.close()
                print(f"{name[5:].replace('_', ' ')}: {verdict}, {time.monotonic() - started:.1f} s", flush=True)
            browser.close()
    finally:
        service.stop()
        shutil.rmtree(service.folder)
    print(f"{len(chosen)} tests, {len(failed)} failed, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
