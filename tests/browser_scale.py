"""The page where there is much of everything, its views beside the overview, and /docs."""

import re
import tempfile
from urllib.parse import parse_qsl, urlsplit

from browser_service import accessible, answered_by, asked_again, consumer_row, job_rows, start, started, wait_for
from playwright.sync_api import expect

JOBS = 1_000
CONSUMERS = 200


class Crowd:
    """As many exports and consumers as a page has to bear, in the place of those that the service has."""

    def __init__(self, service):
        self.template = service.call("GET", "/exports?status=completed&limit=1")["items"][0]
        standing = service.call("GET", "/consumers?limit=1")["items"][0]
        names = [f"{'loader-of-the-warehouse-' * 6}"[:125] + f"{n:03}" for n in range(CONSUMERS)]
        assert {len(name) for name in names} == {128}
        calm = {"lastJob": None, "continuity": None, "state": "fresh", "behindSeconds": 0}
        self.consumers = [{**standing, **calm, "consumerId": name} for name in names]
        # Newest first: what is open has been so for long.
        self.jobs = [self.job(n, names[n % CONSUMERS]) for n in range(JOBS, 0, -1)]
        for job in self.jobs[-2:]:
            job.update(status="processing", progress=40, finishedAt=None, durationSeconds=None)
        for job in self.jobs[-7:-2]:
            job.update(status="pending", progress=0, startedAt=None, finishedAt=None, durationSeconds=None)
        failed = self.jobs[500]
        error = {"code": "full_export_needed", "detail": "a full export is needed first"}
        failed.update(status="failed", error=error, createdAt="2026-01-01T00:00:00.000000Z", consumerId=names[150])
        self.jobs = [job for job in self.jobs if job is failed or job["consumerId"] != names[150]]
        self.consumers[150].update(lastJob=failed, state="failing", failures=32, failingSince="2026-01-01T00:00:00.000000Z")
        for n in (120, 170, 199):
            self.consumers[n].update(continuity="table_recreated", state="needs_full")
        self.consumers[60].update(state="behind", behindSeconds=4_000)

    def job(self, n, consumer):
        return {**self.template, "jobId": f"{n:08}-0000-7000-8000-000000000000", "consumerId": consumer, "number": n}

    def exports(self, route):
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        wanted = [job for job in self.jobs if all(job[name] == query[name] for name in ("status", "dataset") if name in query)]
        wanted = [job for job in wanted if query.get("consumer") in (None, job["consumerId"])]
        limit = int(query["limit"])
        route.fulfill(json={"items": wanted[:limit], "nextCursor": "more" if len(wanted) > limit else None})

    def standings(self, route):
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        items = [one for one in self.consumers if query.get("consumer") in (None, one["consumerId"])]
        route.fulfill(json={"items": items[: int(query["limit"])], "nextCursor": None})

    def shown_to(self, page):
        answered_by(page, "**/exports?*", self.exports)
        answered_by(page, "**/consumers?*", self.standings)


def top_of(locator):
    return locator.bounding_box()["y"]


def is_laid_out(page, width, most_height):
    """That a page is as wide as its window, and not much longer than its content."""
    size = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size[0] <= width and size[1] <= most_height, f"{size} at {width}"


def test_a_crowd_is_seen_at_a_glance(watch, service):
    page = watch.page
    crowd = Crowd(service)
    crowd.shown_to(page)
    page.goto(service.url)
    strip = page.get_by_role("list", name="At a glance")
    expect(strip.get_by_role("listitem")).to_have_text(
        ["200 copies:", "1 failing", "3 needs full", "1 behind", "195 fresh", "2 exports running", "5 exports waiting"]
    )
    # What is open or failed comes first, however old it is; then the last ones.
    statuses = job_rows(page).evaluate_all("rows => rows.map(row => row.dataset.status)")
    assert statuses == ["processing"] * 2 + ["failed"] + ["pending"] * 5 + ["completed"] * 4, statuses
    failed = job_rows(page).nth(2)
    expect(failed.get_by_role("button", name="Start a full export")).to_be_visible()
    # Its consumer's row says why, and leads to it.
    failing = consumer_row(page, crowd.consumers[150]["consumerId"])
    expect(failing).to_contain_text(re.compile("32 exports in a row failed, the first .* ago: full_export_needed"))
    expect(failing.get_by_role("link", name="full_export_needed")).to_have_attribute("href", f"#/jobs/{failed.get_attribute('data-job')}")
    consumers = page.get_by_role("table", name="Consumers and where they stand")
    names = consumers.locator("td.key a").all_text_contents()
    assert [name[-3:] for name in names][:7] == ["150", "120", "170", "199", "060", "000", "001"] and len(names) == 20, names
    for width, first, last, most in ((1280, 400, 2_400, 5_000), (390, 400, 4_000, 10_000)):
        page.set_viewport_size({"width": width, "height": 900})
        assert top_of(page.get_by_role("heading", name="Consumers", exact=True)) < first
        top = top_of(page.get_by_role("heading", name="Recent exports"))
        assert top < last, top
        is_laid_out(page, width, most)
        accessible(page, f"a crowd at {width}")
    # On a phone the last export shows where a row is not fresh.
    expect(failing.locator(".latest")).to_be_visible()
    expect(failing.locator(".latest")).to_have_text(re.compile("failed *(just now|.* ago)$"), use_inner_text=True)
    expect(consumer_row(page, crowd.consumers[0]["consumerId"]).locator(".latest")).to_be_hidden()
    page.set_viewport_size({"width": 1280, "height": 900})
    strip.get_by_role("button", name="3 needs full").click()
    expect(page.get_by_role("heading", name="Consumers", exact=True)).to_be_focused()
    expect(page.get_by_role("heading", name="Consumers", exact=True)).to_be_in_viewport()

    # Among all of them one is found.
    search = page.get_by_role("searchbox", name="Search")
    search.fill("no such one")
    expect(page.get_by_text("No consumer here has “no such one”")).to_be_visible()
    search.fill(crowd.consumers[175]["consumerId"][-5:])
    expect(consumers.locator("td.key a")).to_have_text([crowd.consumers[175]["consumerId"]])
    search.fill("table_recreated")
    expect(consumers.locator("td.key")).to_have_count(3)
    search.fill("")
    page.get_by_role("button", name="Show more of 200 consumers").click()
    expect(consumers.locator("td.key")).to_have_count(40)

    # A page of its own shows as many of them at first.
    page.goto(f"{service.url}/#/datasets/users")
    own = page.get_by_role("table", name="Who exports it").locator("td.key")
    expect(own).to_have_count(20)
    page.get_by_role("button", name="Show more of 200 consumers").click()
    expect(own).to_have_count(40)
    page.goto(f"{service.url}/#/")

    # One that ends is seen to end, however many came after it.
    crowd.jobs[-1].update(status="completed", progress=100, finishedAt="2026-01-01T00:00:00.000000Z", durationSeconds=1.0)
    expect(strip.get_by_role("button", name="running")).to_have_text("1 export running")
    expect(page.locator("tr[data-status=processing]")).to_have_count(1)


def test_a_state_and_its_reason_agree(watch, service):
    page = watch.page
    standing = service.call("GET", "/consumers?limit=1")["items"][0]
    fulls = {**standing, "consumerId": "fulls", "state": "fresh", "continuity": "truncated"}
    deltas = {**fulls, "consumerId": "deltas", "state": "needs_full"}
    unread = {**fulls, "consumerId": "unread", "state": None, "continuity": None, "behindSeconds": None}
    lanes = {"items": [fulls, deltas, unread], "nextCursor": None}
    answered_by(page, "**/consumers?*", lambda route: route.fulfill(json=lanes))
    page.goto(service.url)
    # What can't be told may be wrong.
    consumers = page.get_by_role("table", name="Consumers and where they stand")
    expect(consumers.locator("td.key a")).to_have_text(["deltas", "unread", "fulls"])
    expect(consumer_row(page, "unread")).to_contain_text("The table can't be read now.")
    lost = [{**one, "ready": False, "problems": ["there is no table"]} for one in service.call("GET", "/datasets")["items"]]
    answered_by(page, "**/datasets", lambda route: route.fulfill(json={"items": lost, "tablesWithoutDataset": []}))
    page.reload()
    expect(consumer_row(page, "unread")).to_contain_text("It can't be exported: there is no table")
    page.unroute("**/datasets")
    expect(consumer_row(page, "deltas")).to_contain_text("deltas need a full export first")
    # A full export is exact whatever happened.
    fresh = consumer_row(page, "fulls")
    expect(fresh).to_contain_text("fresh")
    expect(fresh.locator(".state .meaning")).to_be_empty()


def test_a_consumer_names_its_faulty_datasets(watch, service):
    page = watch.page
    standing = service.call("GET", "/consumers?limit=1")["items"][0]
    cause, follows = ({"code": code, "detail": "it failed"} for code in ("table_missing", "batch_member_failed"))

    def lane(name, state, error=None):
        job = {**standing["lastJob"], "dataset": name, "status": "failed", "error": error} if error else standing["lastJob"]
        since = "2026-01-01T00:00:00.000000Z" if error else None
        word = "truncated" if state == "needs_full" else None
        named = {"consumerId": "mart", "dataset": name, "state": state, "continuity": word}
        return {**standing, **named, "lastJob": job, "failures": int(bool(error)), "failingSince": since}

    lanes = [lane("events", "failing", follows), lane("orders", "failing", cause), *(lane(f"t{n}", "needs_full") for n in range(4)), lane("users", "fresh")]
    answered_by(page, "**/consumers?*", lambda route: route.fulfill(json={"items": lanes, "nextCursor": None}))
    page.goto(service.url)
    reason = consumer_row(page, "mart").locator(".state .meaning")
    # The export by which a batch failed comes first.
    expect(reason).to_have_text(
        re.compile(r"^2 failing, 4 needs full: orders \(table_missing\), t0 \(truncated\), t1 \(truncated\) and 3 more; the first failed .* ago; 1 fresh$")
    )
    expect(reason.get_by_role("link", name="orders")).to_have_attribute("href", "#/datasets/orders")
    expect(reason.get_by_role("link", name="table_missing")).to_have_attribute("href", f"#/jobs/{standing['lastJob']['jobId']}")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        is_laid_out(page, width, 6_000)
        accessible(page, f"faulty datasets at {width}")
    # Another export is open by now.
    lanes[1].update(lastJob={**standing["lastJob"], "status": "processing"})
    failed = {**standing["lastJob"], "status": "failed", "error": cause}
    answered_by(page, "**/exports?*status=failed*", lambda route: route.fulfill(json={"items": [failed], "nextCursor": None}))
    page.reload()
    expect(reason).to_contain_text("orders (table_missing), t0")

    # Those that need a full export get it as a batch, after a question.
    def take(route):
        route.fulfill(status=202, json={"batchId": lanes[0]["lastJob"]["jobId"], "jobs": []})

    earlier = {"items": [standing["lastJob"]], "nextCursor": None}
    answered_by(page, "**/exports?consumer=mart*", lambda route: route.fulfill(json=earlier))
    answered_by(page, "**/exports/full", take)
    consumer_row(page, "mart").get_by_role("button", name="4 full exports… of 4 datasets for mart").click()
    question = page.get_by_role("dialog", name="Start full exports for mart?")
    expect(question).to_contain_text("They move mart's positions in 4 datasets")
    expect(question).to_contain_text("The files are csv.")
    with page.expect_request("**/exports/full") as request:
        question.get_by_role("button", name="Start them").click()
    assert request.value.post_data_json == {"datasets": ["t0", "t1", "t2", "t3"], "format": "csv", "compression": "none"}
    assert request.value.headers["x-consumer-id"] == "mart"
    # Of a single one the row has the whole reason, and the way out.
    lanes[:] = [lane("orders", "needs_full"), lane("users", "fresh")]
    page.reload()
    expect(reason).to_have_text(re.compile("^1 needs full: orders; 1 fresh. The table was truncated: .*; deltas need a full export first.$"))
    consumer_row(page, "mart").get_by_role("button", name="Full export… orders for mart").click()
    form = page.get_by_role("dialog", name="New export")
    expect(form.get_by_label("full every live row")).to_be_checked()
    form.get_by_role("button", name="Close").click()
    lanes[:] = [lane("orders", "needs_full", cause), lane("users", "fresh")]
    page.reload()
    expect(reason).to_have_text(re.compile("need a full export first. The last export failed .* ago: table_missing$"))
    lanes[:] = [lane("orders", "failing", cause), lane("users", "fresh")]
    page.reload()
    expect(reason).to_have_text(re.compile("^1 failing: orders; 1 fresh. The last export failed .* ago: table_missing$"))
    lanes[:] = [lane("orders", "fresh"), lane("users", "fresh")]
    page.reload()
    expect(reason).to_be_empty()


def test_a_percentage_goes_with_rows(watch, service):
    page = watch.page
    template = service.call("GET", "/exports?status=completed&limit=1")["items"][0]
    job = {**template, "status": "processing", "phase": "reading", "rowsExported": 0, "progress": 50, "finishedAt": None, "durationSeconds": None}
    page.clock.install(time="2026-01-01T00:03:00Z")
    job["startedAt"] = "2026-01-01T00:00:00.000000Z"

    def answer(route):
        route.fulfill(json={"items": [job], "nextCursor": None}, headers={"Date": "Thu, 01 Jan 2026 00:03:00 GMT"})

    answered_by(page, "**/exports?*", answer)
    row = job_rows(page)
    for phase, rows, progress, words in (("reading", 0, 50, "reading"), ("writing", 700, 50, "50 %"), ("publishing", 0, 99, "publishing")):
        job.update(phase=phase, rowsExported=rows, progress=progress)
        page.goto("about:blank")
        page.goto(f"{service.url}/#/exports")
        expect(row.locator(".percent")).to_have_text(words)
        expect(row.locator(".took .meaning")).to_have_text("about 3 min left" if phase == "writing" else "")


def test_a_crowd_is_asked_for_with_measure(watch, service):
    page = watch.page
    crowd = Crowd(service)
    crowd.shown_to(page)
    page.clock.install()
    page.goto(service.url)
    expect(consumer_row(page, crowd.consumers[150]["consumerId"])).to_be_visible()

    minute = watch.asked_in(60)
    assert 45 <= len(minute) <= 60, (len(minute), minute)

    # The worst: all the time one ends and another begins.
    def go_on(second):
        done = crowd.jobs[-1]
        done.update(status="completed", progress=100, finishedAt=done["createdAt"], durationSeconds=1.0)
        begun = {**crowd.job(2_000 + second, crowd.consumers[0]["consumerId"]), "status": "processing", "finishedAt": None, "durationSeconds": None}
        crowd.jobs.insert(0, begun)
        crowd.jobs.sort(key=lambda job: job["status"] == "processing")

    minute = watch.asked_in(60, go_on)
    assert 70 <= len(minute) <= 100, (len(minute), minute)


def test_the_question_goes_when_its_export_ends(watch, service):
    page = watch.page
    page.goto(service.url)
    expect(consumer_row(page, "consumer-1")).to_be_visible()
    with service.held():
        first = started(page, consumer_row(page, "consumer-1"), "delta")
        expect(first).to_have_attribute("data-status", "processing")
        first.get_by_role("button", name="Cancel").click()
        asked = page.get_by_role("dialog", name="Cancel this export?")
        expect(asked).to_be_visible()
    expect(asked).to_be_hidden()
    expect(first).to_have_attribute("data-status", "completed")
    # On its own page too.
    with service.held():
        job = service.call("POST", "/exports/delta", {"X-Consumer-ID": "consumer-1"})["jobId"]
        page.goto(f"{service.url}/#/jobs/{job}")
        page.get_by_role("button", name="Cancel").click()
        expect(asked).to_be_visible()
    expect(asked).to_be_hidden()
    expect(page.locator(".badge").first).to_have_text("completed")


def test_the_question_stays_while_its_export_does(watch, service):
    page = watch.page
    crowd = Crowd(service)
    crowd.shown_to(page)
    answered_by(page, re.compile("/exports/[0-9-]{36}$"), lambda route: route.fulfill(json=job))
    page.clock.install()
    page.goto(service.url)
    row = page.locator("tr[data-status=pending]").last
    job = next(one for one in crowd.jobs if one["jobId"] == row.get_attribute("data-job"))
    row.get_by_role("button", name="Cancel").click()
    asked = page.get_by_role("dialog", name="Cancel this export?")
    expect(asked).to_be_visible()
    # One that waits since then takes its row's place.
    crowd.jobs.insert(0, {**job, "jobId": "00003001-0000-7000-8000-000000000000"})
    watch.asked_in(12)
    expect(page.locator(f"tr[data-job='{job['jobId']}']")).to_have_count(0)
    expect(asked).to_be_visible()
    asked.get_by_role("button", name="Let it run").click()


def test_a_batch_is_one_line_and_has_its_page(watch, service):
    page = watch.page
    template = service.call("GET", "/exports?status=completed&limit=1")["items"][0]
    batch = "01a1f83b-3f18-718b-bb88-fdeaa3d54f3e"
    end = {"status": "failed", "finishedAt": template["finishedAt"], "durationSeconds": 1.0, "progress": 40}
    follows = {"code": "batch_member_failed", "detail": "another export of the batch failed"}
    cause = {"code": "table_missing", "detail": "there is no table `orders_7`"}

    def member(n):
        job = {**template, "jobId": batch if n == 0 else f"{n:08}-0000-7000-8000-00000000000b", "dataset": f"orders_{n}", "batchId": batch}
        return {**job, "consumerId": "mart", "status": "processing", "progress": 50, "finishedAt": None, "durationSeconds": None}

    members = [member(n) for n in range(60)]
    others = [{**template, "jobId": f"{n:08}-0000-7000-8000-00000000000c"} for n in range(140)]

    def exports(route):
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        items = [job for job in members + others if query.get("status") in (None, job["status"])]
        limit = int(query["limit"])
        route.fulfill(json={"items": items[:limit], "nextCursor": "more" if len(items) > limit else None})

    def whole(route):
        told = {**cause, "member": "orders_7"} if members[7]["status"] == "failed" else None
        sums = {name: sum(job[name] for job in members) for name in ("rowsExported", "bytesWritten")}
        about = {"batchId": batch, "consumerId": "mart", "exportType": template["exportType"], "heal": False, "retryOf": None}
        left = [{"dataset": "untracked", "reason": "not_tracked"}]
        route.fulfill(json={**about, **sums, "status": members[0]["status"], "progress": 50, "error": told, "jobs": members, "leftOut": left})

    answered_by(page, "**/exports?*", exports)
    answered_by(page, f"**/batches/{batch}", whole)
    lines = page.locator(f"tr[data-batch='{batch}']")
    page.goto(f"{service.url}/#/")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("of 60 datasets")
    expect(lines.get_by_role("progressbar")).to_have_attribute("value", "50")
    # Some are published before the others.
    for job in members[:10]:
        job.update(status="completed", progress=100)
    expect(lines.get_by_role("progressbar")).to_have_attribute("value", "58")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("of 60 datasets")
    members[:10] = [member(n) for n in range(10)]
    page.goto(f"{service.url}/#/exports")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("of 60 datasets")
    # As many lines are read as somebody wants to see, though one of them is most of the first page.
    wait_for("others are shown too", lambda: job_rows(page).count() >= 9)
    opens = lines.get_by_role("button", name="exports of the batch for mart")
    expect(opens).to_have_attribute("aria-expanded", "false")
    before = job_rows(page).count()
    opens.focus()
    page.keyboard.press("Enter")
    expect(opens).to_have_attribute("aria-expanded", "true")
    expect(job_rows(page)).to_have_count(before + 50)
    expect(page.get_by_role("button", name=re.compile("^Cancel the batch"))).to_have_count(1)
    accessible(page, "a batch that is opened")
    page.set_viewport_size({"width": 390, "height": 900})
    is_laid_out(page, 390, 10_000)
    page.set_viewport_size({"width": 1280, "height": 900})
    opens.click()
    expect(job_rows(page)).to_have_count(before)

    lines.get_by_role("link", name="of 60 datasets").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("export of 60 datasets, for mart")
    expect(page.get_by_text("0 of 60 are written")).to_be_visible()
    expect(page.get_by_text("untracked (not_tracked)")).to_be_visible()
    expect(job_rows(page)).to_have_count(50)
    page.get_by_role("button", name="Show more of 60 exports").click()
    expect(job_rows(page)).to_have_count(60)
    for n, job in enumerate(members):
        job.update(**end, error=cause if n == 7 else follows)
    expect(page.locator(".failure")).to_contain_text("table_missing in orders_7")
    expect(job_rows(page).first).to_contain_text("orders_7")
    expect(page.get_by_role("button", name=re.compile("^Retry the batch"))).to_have_count(1)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        is_laid_out(page, width, 10_000)
        accessible(page, f"a batch at {width}")
    # Where a retry would fail again, full exports are made of the datasets that need one.
    page.set_viewport_size({"width": 1280, "height": 900})
    cause.update(code="full_export_needed")
    page.reload()
    page.get_by_role("button", name=re.compile("^Retry with full exports where needed")).click()
    answered_by(page, "**/exports/*", lambda route: route.fulfill(status=202, json={"batchId": batch, "jobs": members}))
    question = page.get_by_role("dialog", name=re.compile("^Start .* for mart, with full exports where needed"))
    with page.expect_request(f"**/exports/{template['exportType']}") as request:
        question.get_by_role("button", name="Start them").click()
    sent = request.value.post_data_json
    assert sent["heal"] and sent["datasets"] == [job["dataset"] for job in members], sent
    for job in members:
        job.update(status="completed", error=None, progress=100)
    page.reload()
    expect(page.get_by_role("link", name="manifest.json")).to_have_attribute("href", f"/batches/{batch}/manifest")
    expect(job_rows(page).first.get_by_role("link", name="Download")).to_be_visible()
    watch.expected = ["Failed to load resource.*404"]
    page.goto(f"{service.url}/#/batches/nobody")
    expect(page.get_by_text("RETAIN_JOBS")).to_be_visible()


def test_a_batch_has_its_number_where_a_list_has_a_part(watch, service):
    page = watch.page
    template = service.call("GET", "/exports?status=completed&limit=1")["items"][0]
    batch = "01a1f83b-3f18-718b-bb88-fdeaa3d54f3f"
    part = [{**template, "jobId": f"{n:08}-0000-7000-8000-00000000000d", "dataset": f"orders_{n}", "batchId": batch} for n in range(20)]
    asked = []

    def whole(route):
        asked.append(route.request.url)
        route.fulfill(json={"jobs": [part[0]] * 60}) if len(asked) == 1 else route.fulfill(status=404, json={"detail": "there is no such batch"})

    answered_by(page, "**/exports?*", lambda route: route.fulfill(json={"items": part, "nextCursor": None}))
    answered_by(page, f"**/batches/{batch}", whole)
    watch.expected = ["Failed to load resource.*404"]
    for words in ("of 60 datasets", "of at least 20 datasets"):
        page.goto("about:blank")
        page.goto(f"{service.url}/#/exports?exportType=full")
        expect(page.locator(f"tr[data-batch='{batch}']")).to_contain_text(words)
    # One question is enough.
    asked_again(page)
    assert len(asked) == 2, asked
    page.goto(f"{service.url}/#/exports")
    expect(page.locator(f"tr[data-batch='{batch}']")).to_contain_text("of 20 datasets")


def test_what_is_not_known_yet_keeps_its_place(watch, service):
    page = watch.page
    # Nothing answers until the route goes.
    page.route("**/consumers?*", lambda route: None)
    page.goto(service.url)
    table = page.get_by_role("table", name="Consumers and where they stand")
    expect(job_rows(page).first).to_be_visible()
    expect(table.locator(".skeleton")).to_have_count(3)
    accessible(page, "what is not known yet")
    page.unroute("**/consumers?*")
    expect(consumer_row(page, "consumer-1")).to_be_visible()
    expect(table.locator(".skeleton")).to_have_count(0)


def test_a_consumer_has_its_page(watch, service):
    page = watch.page
    name = "page.of:one@1"
    for kind in ("full", "delta", "delta"):
        service.export(kind, name)
    page.goto(service.url)
    consumer_row(page, name).get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page).to_have_title(f"{name} – cdc-export")
    lanes = page.get_by_role("table", name="Where it stands, by dataset")
    expect(lanes.get_by_role("row")).to_have_count(2)
    expect(lanes.get_by_role("cell").first).to_have_text("users")
    expect(lanes).to_contain_text("fresh")
    expect(job_rows(page)).to_have_count(3)
    numbers = job_rows(page).locator("td[data-label=Number]")
    # With the beginning of its digest.
    expect(numbers).to_have_text([re.compile(rf"^{number}[0-9a-f]{{8}}$") for number in (3, 2, 1)])
    expect(lanes.locator(".last")).to_contain_text("number 3")
    page.set_viewport_size({"width": 390, "height": 900})
    label = numbers.first.evaluate("cell => { const s = getComputedStyle(cell, '::before'); return s.display === 'inline' && s.content }")
    assert label == '"Number"', label
    page.set_viewport_size({"width": 1280, "height": 900})
    accessible(page, "a consumer's page")
    # What its loader has acknowledged shows in its row, and in each export.
    first, second, third = service.call("GET", f"/exports?consumer={name}")["items"][::-1]
    standing = lanes.get_by_title("Published exports that it has not acknowledged")
    expect(standing).to_be_hidden()
    acknowledged = page.locator("dl > div").filter(has_text="Acknowledged")
    page.goto(f"{service.url}/#/jobs/{second['jobId']}")
    expect(acknowledged).to_contain_text("not known")
    service.call("POST", f"/exports/{first['jobId']}/ack")
    page.goto(f"{service.url}/#/consumers/{name}")
    expect(standing).to_have_text(re.compile("^2 not acknowledged since (just now|[0-9]+ s ago)$"))
    expect(standing).to_be_visible()
    accessible(page, "a consumer whose loader is behind")
    for job, words in ((first, "yes: this export is loaded"), (second, "not yet")):
        page.goto(f"{service.url}/#/jobs/{job['jobId']}")
        expect(acknowledged).to_contain_text(words)
        accessible(page, "an export that may be acknowledged")
    service.call("POST", f"/exports/{third['jobId']}/ack")
    page.goto(f"{service.url}/#/consumers/{name}")
    expect(lanes).to_contain_text("fresh")
    expect(standing).to_be_hidden()
    start(page, lanes, "delta")
    expect(standing).to_have_text(re.compile("^1 not acknowledged since "))
    expect(standing).to_be_visible()
    expect(numbers.first).to_have_text(re.compile("^4[0-9a-f]{8}$"))
    expect(job_rows(page)).to_have_count(4)
    # An export leads to its consumer, and a name that nobody has is told.
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Exports").click()
    job_rows(page).first.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    page.goto(f"{service.url}/#/consumers/nobody")
    expect(page.get_by_text("Nobody has asked for an export for this consumer")).to_be_visible()
    watch.expected = ["Failed to load resource.*400"]
    page.goto(f"{service.url}/#/consumers/no%20good")
    expect(page.get_by_text("consumer: a consumer id has").first).to_be_visible()
    expect(page.locator("#banner")).to_be_hidden()


def test_a_dataset_without_capture_has_full_exports_alone(watch, service):
    page = watch.page
    standing = service.call("GET", "/consumers?limit=1")["items"][0]
    uncaptured = {**standing, "consumerId": "viewer", "capture": "none", "rowsWaiting": None, "continuity": None}
    answered_by(page, "**/consumers?*", lambda route: route.fulfill(json={"items": [uncaptured, standing], "nextCursor": None}))
    known = service.call("GET", "/datasets/users")
    answered_by(page, "**/datasets", lambda route: route.fulfill(json={"items": [{**known, "capture": "none"}], "tablesWithoutDataset": []}))
    page.goto(service.url)
    row = consumer_row(page, "viewer")
    expect(row.get_by_role("cell").nth(3)).to_have_text("–")
    row.get_by_role("button", name="Export").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Consumer")).to_have_value("viewer")
    expect(dialog.get_by_role("radio", name="delta")).to_be_disabled()
    expect(dialog.get_by_role("radio", name="full")).to_be_checked()


def test_datasets_show_their_columns_and_tracking(watch, service):
    page = watch.page
    page.goto(service.url)
    views = page.get_by_role("navigation", name="Views")
    views.get_by_role("link", name="Datasets").click()
    expect(views.get_by_role("link", name="Datasets")).to_have_attribute("aria-current", "page")
    table = page.get_by_role("table", name="Datasets")
    known = service.call("GET", "/datasets/users")
    row = table.get_by_role("row").filter(has_text="users")
    expect(row.get_by_role("cell").last).to_have_text(str(len(known["columns"])))
    # How the copies stand, the faulty ones by name.
    standing = service.call("GET", "/consumers?limit=1")["items"][0]
    lane = lambda consumer, state: {**standing, "consumerId": consumer, "dataset": "users", "state": state}
    lanes = [lane("mart", "fresh"), lane("search", "needs_full"), lane("partner", "behind")]
    answered_by(page, "**/consumers?*", lambda route: route.fulfill(json={"items": lanes, "nextCursor": None}))
    page.reload()
    copies = row.locator("[data-label=Copies]")
    expect(copies).to_have_text("needs full1 needs full, 1 behind, 1 fresh: search, partner")
    expect(copies.get_by_role("link", name="search")).to_have_attribute("href", "#/consumers/search")
    lanes.clear()
    page.reload()
    expect(copies).to_have_text("none")
    page.unroute("**/consumers?*")
    accessible(page, "the datasets")
    row.get_by_role("link", name="users").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("users")
    expect(page.get_by_text("Triggers log every change")).to_be_visible()
    columns = page.get_by_role("list", name="Columns").get_by_role("listitem")
    expect(columns).to_have_count(len(known["columns"]))
    headings = page.get_by_role("heading", level=2)
    expect(headings).to_have_text(["Consumers", "Columns", "The last 24 hours", "Exports"])
    expect(columns.first).to_have_text("id bigint – key")
    expect(page.get_by_role("table", name="Who exports it")).to_contain_text("consumer-1")
    expect(page.locator("dl > div").filter(has_text="Change log")).to_contain_text(re.compile("about [0-9.]+ k?M?B are kept for .+, of [0-9.]+ [MG]B at most"))
    expect(job_rows(page).first).to_contain_text("users")
    accessible(page, "a dataset's page")
    page.set_viewport_size({"width": 390, "height": 900})
    is_laid_out(page, 390, 6_000)
    accessible(page, "a dataset's page at 390")
    page.set_viewport_size({"width": 1280, "height": 900})
    watch.expected = ["Failed to load resource.*404"]
    page.goto(f"{service.url}/#/datasets/none")
    expect(page.get_by_text("there is no dataset").first).to_be_visible()
    page.goto(f"{service.url}/#/datasets")

    other = {**known, "name": "d" * 63, "table": "s" * 63 + "." + "t" * 63, "ready": False, "problems": ["its changes are not captured"]}
    answered_by(page, "**/datasets", lambda route: route.fulfill(json={"items": [known, other], "tablesWithoutDataset": [other["table"]]}))
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.reload()
        expect(table.get_by_role("row").filter(has_text="its changes are not captured")).to_contain_text("not ready")
        expect(page.get_by_text("no dataset needs them")).to_contain_text(f"cdc-export untrack --table {other['table']}")
        expect(table.locator("td.key").first).to_have_text("d" * 63)
        page.get_by_role("searchbox", name="Search").fill("users")
        expect(table.locator("td.key")).to_have_text(["users"])
        page.get_by_role("searchbox", name="Search").fill("")
        is_laid_out(page, width, 2_000)
        accessible(page, f"the datasets at {width}")
    views.get_by_role("link", name="API").click()
    expect(page).to_have_title("cdc-export: the API")


def test_schedules_are_there_where_there_are_any(watch, service):
    page = watch.page
    section = page.get_by_role("region", name="Schedules")
    page.goto(service.url)
    expect(page.get_by_role("heading", name="Consumers")).to_be_visible()
    expect(section).to_be_hidden()
    page.goto("about:blank")
    file = service.folder / "datasets.toml"
    file.write_text(
        """[[dataset]]
           name = "users"
           table = "users"
           columns = ["id", "name", "email", "created_at", "updated_at", "is_deleted"]
           updated_at = "updated_at"
           created_at = "created_at"
           deleted = "is_deleted"
           [[schedule]]
           name = "hourly"
           consumer = "scheduled"
           dataset = "users"
           type = "delta"
           every = "1h"
           [[schedule]]
           name = "nightly"
           consumer = "scheduled"
           dataset = "users"
           type = "full"
           cron = "15 2 * * 1-5"
           timezone = "Europe/Berlin"
           run_at_start = false
        """
    )
    service.stop()
    service.start(DATASETS=str(file))
    try:
        has_run = lambda: service.call("GET", "/schedules")["items"][0]["lastJob"]  # noqa: E731
        wait_for("the first one runs", lambda: (has_run() or {}).get("status") == "completed")
        page.goto(service.url)
        table = page.get_by_role("table", name="Schedules and when they run")
        hourly, nightly = (table.get_by_role("row").filter(has_text=name) for name in ("hourly", "nightly"))
        expect(hourly).to_contain_text("every 1h")
        expect(hourly.get_by_role("link", name="delta completed")).to_be_visible()
        expect(hourly.locator("time").last).to_have_text(re.compile("^in "))
        expect(nightly).to_contain_text("15 2 * * 1-5")
        expect(nightly).to_contain_text("Europe/Berlin")
        expect(nightly).to_contain_text("not yet")
        expect(nightly.locator("time:visible")).to_have_count(1)

        known = service.call("GET", "/schedules")["items"]
        late = {
            **known[0], "name": "n" * 63, "consumerId": "c" * 128, "dataset": "d" * 63, "nextAt": "2026-01-01T00:00:00.000000Z", "skipped": 12, "refused": "too_many_open_jobs"
        }
        answered_by(page, "**/schedules", lambda route: route.fulfill(json={"items": [*known, late]}))
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.reload()
            refused = table.get_by_role("row").filter(has_text="too_many_open_jobs")
            expect(refused).to_contain_text(re.compile("due .* ago"))
            expect(refused).to_contain_text("tries again every second")
            expect(refused).to_contain_text("12 skipped since")
            is_laid_out(page, width, 6_000)
            accessible(page, f"the schedules at {width}")
            section.screenshot(path=f"{tempfile.gettempdir()}/schedules-{width}.png")
        hourly.get_by_role("link", name="delta completed").click()
        # By then it may be told more of it, in the title too.
        expect(page).to_have_title(re.compile("^(Export|completed: delta export of users, for scheduled) – cdc-export$"))
    finally:
        page.goto("about:blank")
        service.stop()
        service.start()


def test_events_that_nobody_took_are_told_again(watch, service):
    page = watch.page
    section = page.get_by_role("region", name="Events that were not taken")
    page.goto(service.url)
    expect(page.get_by_role("heading", name="Consumers")).to_be_visible()
    expect(section).to_be_hidden()
    page.goto("about:blank")
    # The service has no operator's file here: it needs none to be asked.
    job = service.export("full", "told")["jobId"]
    dead = {
        "deliveryId": "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11", "endpoint": "w" * 63, "event": "export.completed", "jobId": job, "status": "dead",
        "attempt": 9, "nextAttemptAt": None, "lastStatus": 503, "lastError": "it answered 503", "createdAt": "2026-01-01T00:00:00.000000Z",
        "endedAt": "2026-01-02T18:00:00.000000Z",
    }
    asked = []

    def redelivered(route):
        asked.append(route.request.url)
        route.fulfill(status=202, json={**dead, "status": "pending", "attempt": 0})

    answered_by(page, "**/deliveries?*", lambda route: route.fulfill(json={"items": [dead], "nextCursor": None}))
    answered_by(page, "**/redeliver", redelivered)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(service.url)
        expect(section).to_contain_text("it answered 503")
        is_laid_out(page, width, 6_000)
        accessible(page, f"the deliveries at {width}")
        section.screenshot(path=f"{tempfile.gettempdir()}/deliveries-{width}.png")
    section.get_by_role("button", name=re.compile("^Redeliver")).click()
    expect(section).to_contain_text("It is told within seconds.")
    assert asked == [f"{service.url}/deliveries/{dead['deliveryId']}/redeliver"], asked
    section.get_by_role("link", name="export.completed").click()
    expect(page).to_have_title(re.compile("^(Export|completed: full export of users, for told) – cdc-export$"))


def call_of(page, group, name):
    return page.locator(f"#operations-{group}-{name}")


def test_the_api_is_read_where_the_eye_falls(watch, service):
    page = watch.page
    document = service.call("GET", "/openapi.json")
    calls = sum(len(methods) for methods in document["paths"].values())
    for width, column, most in ((1280, 700, 5_000), (390, 340, 8_000)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{service.url}/docs")
        expect(page.locator(".opblock")).to_have_count(calls)
        box = page.get_by_role("heading", name="cdc-export").bounding_box()
        assert box["y"] < 450, (width, box)
        call = page.locator(".opblock").first.bounding_box()
        assert call["width"] >= column and call["x"] + call["width"] <= width, (width, call)
        is_laid_out(page, width, most)
        # The way past the head is there for who goes by keyboard, and in nobody's way.
        skip = page.get_by_role("link", name="Skip to the calls")
        assert skip.bounding_box()["y"] < 0
        page.keyboard.press("Tab")
        expect(skip).to_be_focused()
        expect(skip).to_be_in_viewport()
        page.keyboard.press("Enter")
        expect(page.locator("#content")).to_be_focused()
        # Whoever follows a call's link is at that call.
        page.goto("about:blank")
        page.goto(f"{service.url}/docs#/exports/startDelta")
        opened = call_of(page, "exports", "startDelta")
        expect(opened).to_contain_text("X-Consumer-ID")
        expect(opened).to_be_in_viewport()
        is_laid_out(page, width, 40_000)
        page.get_by_role("link", name="Overview").click()
        expect(page).to_have_title("cdc-export")


def test_a_call_is_tried_in_the_api(watch, service):
    page = watch.page
    page.goto(f"{service.url}/docs#/exports/startFull")
    call = call_of(page, "exports", "startFull")
    call.get_by_role("button", name="Try it out").click()
    call.get_by_placeholder("X-Consumer-ID").fill("tried")
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
    wait_for("the export is done", lambda: service.call("GET", "/exports?consumer=tried&status=completed")["items"])
