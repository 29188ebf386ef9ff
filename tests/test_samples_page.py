"""The page of samples in a browser: filter, search, order, keys, and hostile text."""

import html
import json
import re

import pytest
from helpers import open_browser

from attune.report.samples import MACHINE
from attune.report.samples_page import difference, page, rows

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> <!--"
LABELS = ("sad", "joyful", "proud")


def replies(texts):
    return [
        {"id": f"test/{i}", "label": LABELS[i % 3], "reference": f"reference {i}", "reply": text,
         "context": [{"role": "user", "text": f"context {i}"}, {"role": "assistant", "text": "oh"},
                     {"role": "user", "text": f"and then {i}"}]}
        for i, text in enumerate(texts)
    ]  # fmt: skip


BASE, DPO = replies([f"the same {i}" for i in range(90)]), replies([f"the same {i}" for i in range(90)])
DPO[7]["reply"], DPO[50]["reply"], DPO[51]["reply"] = HOSTILE, "something else altogether", "the same words"
SCORES = {"base": {"test/0": {"level_er": 2, "rouge_l": 12.345}}, "sft-dpo": {}}
PAGE = page({"base": BASE, "sft-dpo": DPO}, SCORES, "Replies <of> a run", "Corpus sample & more", MACHINE)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def problems():
    """Errors of the browser, and what the page tried to load."""
    return []


@pytest.fixture
def shown(browser, problems, tmp_path):
    """The page; fails if it had problems."""
    (tmp_path / "samples.html").write_text(PAGE, encoding="utf-8")
    opened = browser.new_page()
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: request.url.startswith("file:") or problems.append(request.url))
    opened.goto((tmp_path / "samples.html").as_uri())
    yield opened
    assert problems == []
    opened.close()


def ids(shown):
    return [text.split()[-1] for text in shown.locator("article h2").all_inner_texts()]


def test_replies_and_scores(shown):
    first = shown.locator("article").first
    assert first.locator("h3").all_inner_texts() == ["a person", f"{MACHINE}: base", f"{MACHINE}: sft-dpo"]
    assert first.locator(".reply p").all_inner_texts() == ["reference 0", "the same 0", "the same 0"]
    assert first.locator(".turn").all_inner_texts() == ["user: context 0", "assistant: oh", "user: and then 0"]
    assert first.locator(".reply").nth(1).locator("dl div").all_inner_texts() == ["ER\n2", "ROUGE-L\n12.3"]
    assert shown.locator("#count").inner_text() == "90 of 90"


def test_more_button(shown):
    assert len(ids(shown)) == 40
    shown.click("#more")
    shown.click("#more")
    assert ids(shown) == [f"test/{i}" for i in range(90)] and shown.locator("#more").is_hidden()


def test_label_filter(shown):
    shown.select_option("#label", "proud")
    assert ids(shown) == [f"test/{i}" for i in range(2, 90, 3)]
    assert shown.locator("#count").inner_text() == "30 of 90"
    assert shown.locator("#label option").all_inner_texts() == ["all", "joyful", "proud", "sad"]


def test_search(shown):
    shown.fill("#search", "ALTOGETHER else")
    assert ids(shown) == ["test/50"]
    shown.fill("#search", "context 88")
    assert ids(shown) == ["test/88"]
    shown.fill("#search", "context nowhere")
    assert ids(shown) == [] and shown.locator("#count").inner_text() == "0 of 90"


def test_order_by_difference(shown):
    shown.select_option("#order", "differ")
    found = ids(shown)
    assert set(found[:2]) == {"test/7", "test/50"} and found[2] == "test/51" and found[3] == "test/0"


def test_keys(shown):
    for key, expected in (("j", "test/0"), ("j", "test/1"), ("k", "test/0"), ("k", "test/0")):
        shown.keyboard.press(key)
        assert shown.locator("article:focus h2 span").inner_text() == expected
    shown.keyboard.press("/")
    shown.keyboard.type("altogether")
    assert ids(shown) == ["test/50"]
    shown.keyboard.press("Escape")
    assert len(ids(shown)) == 40
    # Moving past the last article loads more.
    shown.locator("article").last.focus()
    shown.keyboard.press("j")
    assert shown.locator("article:focus h2 span").inner_text() == "test/40" and len(ids(shown)) == 80


def test_html_in_a_reply_is_text(shown):
    shown.fill("#search", "test/7 onerror")
    assert shown.locator("article .reply p").nth(2).inner_text() == HOSTILE
    assert shown.title() == "Replies <of> a run" and shown.locator("img").count() == 0


def test_foreign_script_does_not_run(shown, problems):
    shown.evaluate("""() => {
        const made = document.createElement("script");
        made.textContent = "document.title = 'taken'";
        document.body.append(made);
    }""")
    assert shown.title() == "Replies <of> a run"
    assert "Content Security Policy" in problems.pop()


def test_contrast(shown):
    def contrast():
        colours = shown.evaluate(
            """() => ["color", "backgroundColor"].map((name) => getComputedStyle(document.body)[name])"""
        )
        light = []
        for colour in colours:
            parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
            linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
            light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
        return (max(light) + 0.05) / (min(light) + 0.05), light[1]

    backgrounds = []
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        ratio, background = contrast()
        assert ratio > 7  # WCAG 2.2, 1.4.6
        backgrounds.append(background)
    assert backgrounds[0] > 0.5 > backgrounds[1]


def test_page_loads_nothing():
    own, data, script = re.split(r"<script[^>]*>", PAGE)
    assert not re.search(r"https?:|@import|url\(|src=|href=|<link|<img", own + script)
    assert "<" not in data.removesuffix("</script>\n")


def test_machine_notice():
    own, data, script = re.split(r"<script[^>]*>", PAGE)
    notice = " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "", own, flags=re.DOTALL)).split())
    assert f'Replies headed "{MACHINE}" come from language models, unchecked: some are wrong or hurtful' in notice
    # The heading that the script gives to each reply of a model.
    found = json.loads(data.removesuffix("</script>\n"))
    assert found["machine"] == MACHINE and "machine" in script
    assert [len(row["replies"]) for row in found["rows"]] == [len(found["variants"])] * 90


def test_example_that_a_variant_lacks():
    found = rows({"base": BASE[:5], "sft-dpo": DPO[2:9]}, SCORES)
    assert [row["id"] for row in found["rows"]] == ["test/2", "test/3", "test/4"]


def test_difference():
    assert difference(["a b", "B a"]) == 0
    assert difference(["a b", "c d"]) == 1
    assert difference(["a b c", "a b d"]) == pytest.approx(0.5)
    assert difference(["a", "a", "b"]) == pytest.approx(2 / 3)
    assert difference(["", ""]) == 0 == difference(["alone"])
