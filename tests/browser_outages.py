"""The page where the service, its database, a key or an allowance of requests is away."""

import json
import re
import signal

from browser_service import accessible, answered_by, asked_again, consumer_row, job_rows, limited, saved, start, started, wait_for
from playwright.sync_api import expect


def test_the_database_goes_away(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*503"]
    page.goto(service.url)
    expect(page.locator("#connection")).to_have_text("live")
    service.sql(
        "alter database cdc_export allow_connections false;"
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'cdc_export'",
        "postgres",
    )
    try:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("#banner-title")).to_have_text(re.compile(r"Its database is away since \d\d:\d\d:\d\d UTC"))
        expect(page.locator("#banner-count")).to_contain_text("Trying again")
        accessible(page, "without a database")
    finally:
        service.sql("alter database cdc_export allow_connections true", "postgres")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#connection")).to_have_text("live")


def test_the_service_goes_away_and_comes_back(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*ERR_CONNECTION", "request: net::ERR_(CONNECTION|EMPTY|INCOMPLETE|SOCKET)", "ERR_INCOMPLETE", "ERR_EMPTY"]
    page.goto(service.url)
    expect(page.locator("#connection")).to_have_text("live")
    row = consumer_row(page, "consumer-1")
    expect(row).to_be_visible()
    rows = job_rows(page).count()
    service.stop(signal.SIGKILL)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner-title")).to_have_text(re.compile(r"^Not reachable since \d\d:\d\d:\d\d UTC\.$"))
    expect(page.locator("#banner-count")).to_have_text(re.compile(r"Trying again (in \d+ s\.|…)"))
    expect(page.locator("#connection")).to_have_text(re.compile("^as of "))
    # What is known stays, marked as old, and what is asked for says that it wasn't done.
    assert job_rows(page).count() == rows
    expect(page.locator("body")).to_have_class("stale")
    expect(page.locator("#said")).to_contain_text("Not reachable since")
    accessible(page, "without a service")
    form = start(page, row, "delta")
    expect(form.get_by_role("alert")).to_have_text("the service gave no answer")
    asked = len(watch.requests)
    page.wait_for_timeout(3000)
    assert len(watch.requests) - asked <= 3, "it asks ever more rarely"
    service.start()
    expect(page.locator("#banner")).to_be_hidden(timeout=35_000)
    expect(page.locator("#connection")).to_have_text("live")
    # The click whose answer was lost, clicked again: it is not asked about twice.
    form.get_by_role("button", name="Start", exact=True).click()
    expect(form).to_be_hidden()
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")


def test_keys(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*40[13]"]
    service.stop()
    service.start(AUTH="keys")
    keys = {
        "all": service.command("keys", "create", "--name", "all").strip(),
        "reader": service.command("keys", "create", "--name", "reader", "--scope", "export:read").strip(),
    }
    page.goto(service.url)
    dialog = page.get_by_role("dialog", name="A key is needed")
    expect(dialog).to_be_visible()
    accessible(page, "the question for a key")
    dialog.get_by_label("Key").fill("cdcx_000000000000_" + "0" * 64)
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("key")
    expect(page.locator("#banner-title")).to_have_text("A key is needed.")

    # One that may only read.
    dialog.get_by_label("Key").fill(keys["reader"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    row = consumer_row(page, "consumer-1")
    form = start(page, row, "full")
    expect(form.get_by_role("alert")).to_contain_text("this key lacks the scope export:write")
    form.get_by_role("button", name="Close").click()
    job = service.call("GET", "/exports?status=completed&limit=1", {"Authorization": f"Bearer {keys['reader']}"})["items"][0]
    # By the memory where the browser can't write files, by a file where it can.
    page.evaluate("delete window.showSaveFilePicker")
    done = page.locator(f"tr[data-job='{job['jobId']}']")
    with page.expect_download() as download:
        done.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == job["outputFilename"]
    assert saved(download.value) == job["sha256"]
    page.evaluate(
        """() => { window.showSaveFilePicker = async ({ suggestedName }) =>
                     (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true }); }"""
    )
    page.evaluate("document.getElementById('said').textContent = ''")
    done.get_by_role("button", name="Download").click()
    expect(page.locator("#said")).to_have_text(f"{job['outputFilename']} is saved")
    written = page.evaluate(
        """async (name) => { const folder = await navigator.storage.getDirectory();
                             const file = await (await folder.getFileHandle(name)).getFile();
                             const hash = await crypto.subtle.digest('SHA-256', await file.arrayBuffer());
                             return Array.from(new Uint8Array(hash), (b) => b.toString(16).padStart(2, '0')).join(''); }""",
        job["outputFilename"],
    )
    assert written == job["sha256"]

    # What no memory holds is refused, with the way that works.
    page.evaluate("delete window.showSaveFilePicker")

    def grown(route):
        answer = route.fetch()
        listed = answer.json()
        for listed_job in listed["items"]:
            listed_job["bytesWritten"] = 10_000_000_000
        route.fulfill(json=listed)

    answered_by(page, "**/exports?*", grown)
    page.reload()
    page.evaluate("delete window.showSaveFilePicker")
    done.get_by_role("button", name="Download").click()
    expect(done.get_by_role("alert")).to_contain_text("10 GB are too much for this browser to hold; by hand: curl -H")
    page.unroute("**/exports?*")

    # It is this tab's, and nowhere but there.
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(Object.values(sessionStorage))]")
    assert kept == ["{}", "", json.dumps([keys["reader"]])], kept
    page.reload()
    expect(row).to_be_visible()
    done.get_by_role("link").first.click()
    expect(page.locator(".command code").first).to_contain_text('"Authorization: Bearer $CDC_EXPORT_KEY"')
    assert keys["reader"] not in page.content()
    page.get_by_role("link", name="← Overview").click()

    # The API's page uses it too.
    page.goto(f"{service.url}/docs#/watermarks/listConsumers")
    call = page.locator("#operations-watermarks-listConsumers")
    call.get_by_role("button", name="Try it out").click()
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    expect(call.locator(".curl-command")).to_contain_text("Bearer $CDC_EXPORT_KEY")
    assert keys["reader"] not in page.content()
    page.goto(service.url)
    expect(row).to_be_visible()

    # Revoked while it is in use.
    service.command("keys", "revoke", "reader")
    wait_for("it is found out", lambda: asked_again(page) and dialog.is_visible())
    expect(dialog.get_by_role("alert")).to_contain_text("key")
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_label("Key").fill(keys["all"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(started(page, row, "delta")).to_have_attribute("data-status", "completed")
    with service.held():
        started(page, row, "full").get_by_role("link").first.click()
        expect(page.locator(".badge").first).to_have_text("processing")
    expect(page.locator(".badge").first).to_have_text("completed")
    page.get_by_role("button", name=re.compile("Forget key cdcx_[0-9a-f]{12}$")).click()
    expect(dialog).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_limit_of_requests_makes_it_slower(watch, service):
    page = watch.page
    watch.expected = ["Failed to load resource.*429"]
    service.stop()
    # The page's own files are requests too.
    service.start(RATE_LIMIT="60/h")
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()
    wait_for("the allowance is used up", lambda: limited(service))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner-title")).to_have_text("Too many requests.")
    expect(page.locator("#banner-count")).to_have_text(re.compile(r"Trying again in \d+ s\."))
    # Its own wish to ask at once waits too.
    asked = len(watch.requests)
    page.get_by_role("button", name="Try now").click()
    page.wait_for_timeout(1500)
    assert len(watch.requests) == asked, watch.requests[asked:]
