"""The page as a newcomer and an operator use it, from the first export on."""

import json
import pathlib
import re
import subprocess
from urllib.parse import parse_qsl, urlsplit

from browser_service import accessible, answered_by, asked, asked_again, consumer_row, job_rows, saved, start, started, wait_for
from playwright.sync_api import expect

# Text that would do something if anything took it for HTML.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_the_first_export_by_one_button(watch, service):
    page = watch.page
    page.goto(service.url)
    expect(page.get_by_text("Nobody has asked for an export yet")).to_be_visible()
    steps = page.locator(".steps > li")
    expect(steps).to_have_class(["done", "done", ""])
    expect(steps.first).to_have_text("1 table is a dataset.")
    by_hand = steps.last.locator("code")
    expect(by_hand).to_have_text(
        f"curl -X POST -H 'X-Consumer-ID: consumer-1' '{service.url}/exports/full'"
    )
    accessible(page, "the empty page")
    # The consumer may have any name.
    named = steps.last.get_by_label("A consumer is whoever asks for one")
    named.fill("the mart")
    expect(steps.last.get_by_role("alert")).to_contain_text("A consumer id has 1 to 128 of")
    expect(steps.last.get_by_role("button")).to_have_count(0)
    expect(steps.last.locator(".buttons")).to_be_empty()
    named.fill("mart")
    expect(by_hand).to_contain_text("X-Consumer-ID: mart")
    expect(steps.last.get_by_role("button", name="Start a full export of users for mart")).to_be_visible()
    expect(steps.last.get_by_role("button", name="Copy to start it")).to_be_visible()
    named.fill("consumer-1")
    # One that is not captured yet is told how.
    untracked = [{**one, "ready": False, "reason": "not_tracked", "problems": ["x"]} for one in service.call("GET", "/datasets")["items"]]
    answered_by(page, "**/datasets", lambda route: route.fulfill(json={"items": untracked}))
    page.reload()
    expect(steps.nth(1)).to_contain_text("cdc-export track --all")
    expect(steps).to_have_class(["done", "", ""])
    accessible(page, "the first steps")
    page.unroute("**/datasets")
    # Without a dataset `users`, the page offers an export of another dataset.
    orders = [{**one, "name": "orders"} for one in service.call("GET", "/datasets")["items"]]
    answered_by(page, "**/datasets", lambda route: route.fulfill(json={"items": orders}))
    page.reload()
    expect(by_hand).to_contain_text("""-d '{"dataset":"orders"}'""")
    with page.expect_request("**/exports/full") as request:
        page.get_by_role("button", name="Start a full export of orders for consumer-1").click()
    assert request.value.post_data_json == {"dataset": "orders"}
    expect(page.locator(".empty").get_by_role("alert")).to_contain_text("there is no dataset `orders`")
    watch.expected = ["Failed to load resource.*400"]
    page.unroute("**/datasets")
    page.reload()
    page.get_by_role("button", name="Start a full export of users for consumer-1").click()

    # It moves: a failpoint stops it in its middle for a while.
    row = job_rows(page).first
    bar = row.get_by_role("progressbar")
    expect(bar).to_be_visible()
    wait_for("progress in the middle", lambda: 0 < int(bar.get_attribute("value") or 0) < 100)
    expect(row).to_contain_text(" left")
    accessible(page, "an export that runs")
    expect(row).to_have_attribute("data-status", "completed")
    # A screen reader hears that the export has ended.
    expect(page.locator("#said")).to_have_text(re.compile(r"completed: full export of users, for consumer-1, [0-9,]+ rows"))
    expect(bar).to_be_hidden()

    job = service.call("GET", "/exports?limit=1")["items"][0]
    expect(row).to_contain_text(f"{job['rowsExported']:,}")
    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == job["outputFilename"]
    assert saved(download.value) == job["sha256"]


def test_the_tour_goes_on_to_a_delta(watch, service):
    page = watch.page
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    before = row.locator("time").first.get_attribute("datetime")
    expect(row).to_contain_text("fresh")
    service.call("DELETE", "/users/42")
    service.sql("update users set name = 'Renamed', updated_at = now() where id = 43")
    page.reload()
    # It asks before it moves the position, and what is done without thinking moves nothing.
    jobs = len(service.call("GET", "/exports")["items"])
    form = asked(page, row, "delta")
    expect(form.get_by_label("Consumer")).to_have_value("consumer-1")
    question = page.get_by_role("dialog", name="Start a delta for consumer-1?")
    expect(question).to_contain_text("It moves consumer-1's position in users: its loader must fetch this file")
    accessible(page, "the question before a delta")
    expect(question.get_by_role("button", name="Not now")).to_be_focused()
    page.keyboard.press("Enter")
    expect(question).to_be_hidden()
    expect(form.get_by_role("button", name="Start", exact=True)).to_be_focused()
    form.get_by_role("radio", name="full").check()
    form.get_by_role("button", name="Start", exact=True).click()
    question = page.get_by_role("dialog", name="Start a full export for consumer-1?")
    expect(question).to_contain_text(re.compile(r"It reads the whole table, about [0-9,]+ rows \([0-9.]+ MB\)\. The file is csv\."))
    page.keyboard.press("Escape")
    expect(question).to_be_hidden()
    page.keyboard.press("Escape")
    expect(row.get_by_role("button", name="Export")).to_be_focused()
    assert len(service.call("GET", "/exports")["items"]) == jobs
    first = started(page, row, "delta")
    expect(first).to_contain_text("delta users")
    expect(first).to_have_attribute("data-status", "completed")
    wait_for("the watermark moves", lambda: row.locator("time").first.get_attribute("datetime") > before)
    with page.expect_download() as download:
        first.get_by_role("link", name="Download").click()
    lines = pathlib.Path(download.value.path()).read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["DELETE", "42"], ["UPDATE", "43"]], lines


def test_one_is_cancelled_and_retried(watch, service):
    page = watch.page
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    expect(row).to_be_visible()
    with service.held():
        first = started(page, row, "incremental")
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        dialog = page.get_by_role("dialog")
        accessible(page, "the question before a cancel")
        expect(dialog.get_by_role("button", name="Let it run")).to_be_focused()
        dialog.get_by_role("button", name="Let it run").click()
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        # The row says so from the click on, whenever the service answers.
        held = []
        page.route("**/cancel", lambda route: held.append(route))
        dialog.get_by_role("button", name="Cancel the export").click()
        expect(first.locator(".badge")).to_have_text("cancelling…")
        expect(first.get_by_role("button", name="Cancel")).to_have_attribute("aria-disabled", "true")
        accessible(page, "an export that is being cancelled")
        wait_for("it is asked for", lambda: page.evaluate("1") and held)
        held[0].continue_()
        expect(first).to_have_attribute("data-status", "cancelled")
    # The button that was clicked is gone, and its successor has the focus.
    expect(first.get_by_role("button", name="Retry")).to_be_focused()
    cancelled = first.get_attribute("data-job")
    first.get_by_role("button", name="Retry").click()
    page.get_by_role("button", name="Start it").click()
    again = job_rows(page).filter(has=page.locator(f":scope:not([data-job='{cancelled}'])")).first
    expect(again).to_have_attribute("data-status", "completed")

    # The story of both, by their own addresses.
    again.get_by_role("link", name="incremental users").click()
    expect(page).to_have_url(re.compile(r"#/jobs/[0-9a-f-]{36}$"))
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("link", name=cancelled).click()
    expect(page.locator(".timeline")).to_contain_text("Cancelled")
    expect(page.get_by_text("It was cancelled, and moved no watermark")).to_be_visible()


def test_a_job_tells_its_story_while_it_runs(watch, service):
    page = watch.page
    with service.held():
        job = service.call("POST", "/exports/delta", {"X-Consumer-ID": "consumer-1"})["jobId"]
        page.goto(f"{service.url}/#/jobs/{job}")
        expect(page.locator(".timeline")).to_contain_text("Asked for")
        expect(page.locator(".badge").first).to_have_text("processing")
    # Its events tell, not a poll: they are one request for as long as it runs.
    expect(page.locator(".badge").first).to_have_text("completed")
    events = [url for _, _, url in watch.requests if url.endswith(f"{job}/events")]
    assert len(events) == 1, events
    expect(page.locator(".timeline")).to_contain_text("Completed")
    known = service.call("GET", f"/exports/{job}")
    story = page.locator("dl")
    for value in (known["sha256"], known["digest"], "after ", known["outputFilename"], f"{known['bytesWritten']:,} bytes", job):
        expect(story).to_contain_text(value)
    expect(page.get_by_role("heading", name="Ask for another one like it")).to_be_visible()
    command = page.locator(".command code").first.text_content()
    again = subprocess.run(["bash", "-c", command.replace("curl", "curl -sf", 1)], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["exportType"] == "delta", again.stdout
    assert json.loads(page.locator("details code").text_content()) == known
    watch.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy to check the file").click()
    expect(page.get_by_role("button", name="Copied to check the file")).to_be_visible()
    checked = subprocess.run(
        ["bash", "-c", page.evaluate("navigator.clipboard.readText()")],
        cwd=service.folder / "output", capture_output=True, text=True, check=False,
    )
    assert checked.stdout == f"{known['outputFilename']}: OK\n", checked
    accessible(page, "a job")
    page.goto(f"{service.url}/#/jobs/nobody")
    watch.expected = ["Failed to load resource.*404"]
    expect(page.get_by_text("RETAIN_JOBS")).to_be_visible()


def test_a_job_with_datasets_lists_its_exports(watch, service):
    page = watch.page
    page.goto(service.url)
    made = page.evaluate(
        """fetch("/exports/delta", {
             method: "POST", headers: { "X-Consumer-ID": "consumer-1", "Content-Type": "application/json" }, body: '{"datasets": ["users"]}'
           }).then((answer) => answer.json())"""
    )
    known = service.call("GET", f"/exports/{made['jobId']}?wait=60")
    page.goto(f"{service.url}/#/jobs/{made['jobId']}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Delta export of users, for consumer-1")
    row = page.get_by_role("table", name="Its exports").get_by_role("row").filter(has_text="users")
    expect(row.locator(".code").last).to_have_text(known["exports"][0]["digest"][:8])
    with page.expect_download() as download:
        row.get_by_role("link", name="Download").click()
    assert saved(download.value) == known["exports"][0]["sha256"]
    with page.expect_download() as download:
        row.get_by_role("link", name="Manifest").click()
    assert made["jobId"] in pathlib.Path(download.value.path()).read_text()
    assert json.loads(page.locator("details code").text_content()) == known
    accessible(page, "a job with datasets")


def test_a_failure_says_what_to_do(watch, service):
    page = watch.page
    service.sql("delete from users where id = 44; truncate users")
    page.goto(service.url)
    row = consumer_row(page, "consumer-1")
    expect(row).to_contain_text("truncated")
    expect(row).to_contain_text("deltas need a full export first")
    first = started(page, row, "delta")
    expect(first).to_have_attribute("data-status", "failed")
    expect(first).to_contain_text("full_export_needed")
    strip = page.get_by_role("list", name="At a glance")
    expect(strip.get_by_role("button", name="needs full")).to_have_text(re.compile(r"^\d+ needs full$"))
    expect(row).to_contain_text("needs full")
    # The last day has it, marked.
    page.reload()
    expect(row.get_by_role("img", name=re.compile("[0-9]+ completed, 1 failed in the last 24 hours"))).to_be_visible()
    day = page.get_by_role("region", name="The last 24 hours")
    expect(day.locator("rect.bad")).to_have_count(1)
    expect(day.locator(".readout")).to_contain_text("1 failed (users)")
    expect(day.get_by_role("link", name="1 failed")).to_have_attribute("href", "#/exports?dataset=users&status=failed")
    # A retry would fail in the same way.
    expect(first.get_by_role("button", name="Start a full export")).to_be_visible()
    expect(first.get_by_role("button", name="Retry")).to_have_count(0)
    first.get_by_role("link", name="delta users").click()
    expect(page.get_by_text("Start a full export: it has every live row")).to_be_visible()
    expect(page.locator(".command").first).to_contain_text("/exports/full")
    accessible(page, "a failure")
    page.get_by_role("button", name="Start a full export").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Full export of users, for consumer-1")
    expect(page.locator(".badge").first).to_have_text("completed")
    # It is not offered again where it has been done.
    failed = service.call("GET", "/exports?status=failed&limit=1")["items"][0]["jobId"]
    for where in ("exports", "exports?status=failed", f"jobs/{failed}", ""):
        page.goto("about:blank")
        page.goto(f"{service.url}/#/{where}")
        expect(page.get_by_text("full_export_needed").first).to_be_visible()
        expect(page.get_by_role("button", name="Start a full export")).to_have_count(0)
    expect(consumer_row(page, "consumer-1")).to_contain_text("fresh")


def test_hostile_texts_are_texts(watch, service):
    page = watch.page
    job = service.call("GET", "/exports?status=failed&limit=1")["items"][0]["jobId"]
    quoted = HOSTILE.replace("'", "''")
    service.sql(f"update cdc_export.jobs set error_detail = '{quoted}' where id = '{job}'")
    page.goto(f"{service.url}/#/jobs/{job}")
    expect(page.locator(".failure")).to_contain_text(HOSTILE)
    # No name of ours can be hostile; another version's may, or a proxy's.
    names = ("consumerId", "dataset", "name", "outputFilename", "continuity", "code", "detail")

    def soil(route):
        def soiled(value, name=None):
            if isinstance(value, dict):
                return {key: soiled(one, key) for key, one in value.items()}
            if isinstance(value, list):
                return [HOSTILE] if name == "problems" else [soiled(one) for one in value]
            return HOSTILE if name in names else False if name == "ready" else value

        route.fulfill(json=soiled(route.fetch().json()))

    answered_by(page, re.compile(r".*/(consumers|datasets|exports)(\?.*)?$"), soil)
    page.goto(f"{service.url}/#/")
    expect(consumer_row(page, HOSTILE).first).to_be_visible()
    expect(page.get_by_label("Datasets that can't be exported now")).to_contain_text(HOSTILE)
    expect(job_rows(page).first).to_contain_text(HOSTILE)
    page.get_by_role("button", name="New export").click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    assert page.locator("main img, main script, dialog img, dialog script").count() == 0
    assert page.title() == "cdc-export"
    # The page's policy forbids it too, not only the page's own care.
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (e) { return e.name } }")
    assert refused == "TypeError", refused
    watch.expected = ["policy: require-trusted-types-for", "TrustedHTML"]


def test_the_page_is_quiet(watch, service):
    page = watch.page
    page.clock.install()
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()
    expect(consumer_row(page, "consumer-1")).to_be_visible()

    minute = [url.removeprefix(service.url) for url in watch.asked_in(60)]
    # Each look at the consumers may bring one more look at the exports.
    assert 5 <= sum(url.startswith("/exports?") for url in minute) <= 9 and len(minute) <= 14, minute
    # A hidden page requests nothing.
    page.evaluate(
        """() => { Object.defineProperty(document, 'hidden', { value: true, configurable: true });
                   document.dispatchEvent(new Event('visibilitychange')); }"""
    )
    assert watch.asked_in(60) == []
    before = len(watch.requests)
    page.evaluate(
        """() => { Object.defineProperty(document, 'hidden', { value: false, configurable: true });
                   document.dispatchEvent(new Event('visibilitychange')); }"""
    )
    wait_for("it is asked for again", lambda: page.evaluate("1") and len(watch.requests) > before)
    watch.asked_in(1)
    back = watch.requests[before:]
    assert "/exports?" in back[0][2] and len(back) <= 5, back


def test_the_page_asks_more_often_while_exports_run(watch, service):
    page = watch.page
    template = service.call("GET", "/exports?status=completed&limit=1")["items"][0]

    def running(number):
        job = {**template, "jobId": f"{number:08}-0000-7000-8000-000000000000", "status": "processing", "progress": 40}
        return {**job, "finishedAt": None, "durationSeconds": None}

    jobs = [running(2), running(1)]

    def listed(route):
        wanted = dict(parse_qsl(urlsplit(route.request.url).query)).get("status")
        items = [job for job in jobs if wanted in (None, job["status"])]
        # With more exports than a page has, the page also asks for those that are open or failed.
        route.fulfill(json={"items": items, "nextCursor": None if wanted else "more"})

    answered_by(page, "**/exports?*", listed)
    page.clock.install()
    page.goto(service.url)
    expect(job_rows(page)).to_have_count(2)
    minute = watch.asked_in(60)
    assert 45 <= len(minute) <= 60, (len(minute), minute)

    # The most: all the time one ends and another begins.
    def go_on(second):
        jobs[-1].update(status="completed", progress=100, finishedAt=template["finishedAt"], durationSeconds=1.0)
        jobs.insert(0, running(3 + second))
        jobs.sort(key=lambda job: job["status"] == "processing")

    minute = watch.asked_in(60, go_on)
    assert 70 <= len(minute) <= 100, (len(minute), minute)


def test_by_keyboard_alone(watch, service):
    page = watch.page
    page.goto(service.url)
    expect(job_rows(page).first).to_be_visible()

    def tab_to(words, key="Tab"):
        for _ in range(120):
            page.keyboard.press(key)
            name = page.evaluate("document.activeElement.textContent.trim() + ' ' + (document.activeElement.id || '')")
            seen = page.evaluate(
                "(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 })()"
            )
            assert seen, f"the focus can't be seen on: {name}"
            if re.search(words, name):
                return name
        raise AssertionError(f"no {words} by Tab")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab_to("^New export")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.type("by-keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="New export")).to_be_focused()
    expect(job_rows(page).first).to_contain_text("by-keyboard")
    expect(job_rows(page).first).to_have_attribute("data-status", "completed")
    expect(consumer_row(page, "by-keyboard")).to_be_visible()
    tab_to("^Export… users for by-keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Not now")).to_be_focused()
    tab_to("^Start it", "Shift+Tab")
    page.keyboard.press("Enter")
    made = lambda: service.call("GET", "/exports?consumer=by-keyboard")["items"]
    wait_for("the second export", lambda: len(made()) == 2)
    expect(page.locator(f"tr[data-job='{made()[0]['jobId']}']")).to_have_attribute("data-status", "completed")
    # The row was kept up to date meanwhile, and the focus with it.
    assert "Export…" in page.evaluate("document.activeElement.textContent")
    tab_to("^All exports")
    tab_to("^full users")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Full export of users, for by-keyboard")
    tab_to("^← Overview", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(job_rows(page).first).to_be_visible()
    tab_to("^New export", "Shift+Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_narrow_light_and_dark(watch, service):
    page = watch.page
    page.set_viewport_size({"width": 400, "height": 860})
    # As long as a name may be, with no place to break it.
    service.export("full", "x" * 128)
    failed = service.call("GET", "/exports?status=failed&limit=1")["items"][0]["jobId"]
    done = service.call("GET", "/exports?status=completed&limit=1")["items"][0]["jobId"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        views = ("/#/", f"/#/jobs/{failed}", f"/#/jobs/{done}")
        others = ("/#/exports", "/#/datasets", f"/#/consumers/{'x' * 128}")
        for where in views + (others if scheme == "light" else ()):
            page.goto(service.url + where)
            expect(page.locator(".badge").first).to_be_visible()
            for width in (320, 960, 961, 1024, 1280, 400):
                page.set_viewport_size({"width": width, "height": 860})
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{where} is {wide} wide at {width}, {scheme}"
            accessible(page, f"{where} at 400, {scheme}")
        page.goto(service.url)
        page.get_by_role("button", name="New export").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        accessible(page, f"the form at 400, {scheme}")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.keyboard.press("Escape")
        accessible(page, f"the overview at 1280, {scheme}")
        page.set_viewport_size({"width": 400, "height": 860})
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground))) < 60, ground


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
    page.evaluate("delete window.showSaveFilePicker")
    done = page.locator(f"tr[data-job='{job['jobId']}']")
    with page.expect_download() as download:
        done.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == job["outputFilename"]
    assert saved(download.value) == job["sha256"]

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
    accessible(page, "the API's page", runOnly=["color-contrast"])
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
