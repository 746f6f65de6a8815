"""The report in a real browser: nothing loaded, nothing wrong, every width."""

import pytest

from dpr_jax.reporting import report
from tests.reporting import chromium
from tests.reporting.test_report import HOSTILE

pytestmark = pytest.mark.processes
WIDTHS = (360, 480, 768, 961, 1280, 1600)
# Elements that reach beyond the window, but for what scrolls by itself.
BEYOND = """
[...document.querySelectorAll("body *")].filter(each =>
  each.getBoundingClientRect().right > innerWidth + 1
  && !each.closest(".wide, nav ol, svg")).map(each => each.outerHTML)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  program = chromium.find()
  if program is None:
    pytest.skip(
      f"NOT CHECKED IN A BROWSER: none of {', '.join(chromium.NAMES)} is in"
      " PATH (Debian: apt-get install chromium)"
    )
  browser = chromium.Browser(program, tmp_path_factory.mktemp("profile"))
  yield browser
  browser.close()


def test_widths_schemes_and_print(browser, page, page_of_two):
  for _, path in (page, page_of_two):
    browser.open(path)
    for scheme in ("light", "dark"):
      for width in WIDTHS:
        browser.look(width, scheme=scheme)
        wide = browser.value("document.documentElement.scrollWidth")
        assert wide <= width, browser.value(BEYOND)
        assert browser.value(BEYOND) == []
    background = "getComputedStyle(document.body).backgroundColor"
    dark = browser.value(background)
    browser.look(1280, scheme="light")
    assert dark == "rgb(23, 24, 27)"
    assert browser.value(background) == "rgb(253, 253, 252)"
    assert browser.pdf().startswith(b"%PDF")
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []


def test_questions_are_searched_and_opened(browser, page):
  browser.open(page[1])
  tally = "document.getElementById('tally').textContent"
  first = "dense against dense-start in the first 1: 1 won, 0 lost,"
  assert browser.value(tally) == f"{first} 1 both right, 2 neither; 1 shown."
  browser.value(
    "search.value = 'seine'; search.dispatchEvent(new Event('input'))"
  )
  assert browser.value(tally).endswith(
    "1 won, 0 lost, 0 both right, 0 neither; 1 shown."
  )
  browser.value("document.querySelector('.question').open = true")
  shown = "new Promise(done => setTimeout(() => done(1), 50))"
  browser.call("Runtime.evaluate", expression=shown, awaitPromise=True)
  mark = "document.querySelector('mark').textContent"
  assert browser.value(mark) == "Seine"
  why = "document.querySelector('.passage .why').textContent"
  assert browser.value(why).startswith(
    "dense: rank 1, score 3; dense-start: rank 3, score 1; bm25: rank 1"
  )
  assert browser.complaints() == []


def test_hostile_text_does_not_run(browser, tmp_path, small, results):
  for method in ("dense", "bm25"):
    results(small, method, (0, 0), title=HOSTILE, questions=(HOSTILE, "?"))
  browser.open(report.write(small, out=tmp_path))
  browser.value(
    "kind.value = 'all'; kind.dispatchEvent(new Event('change'));"
    "document.querySelectorAll('details').forEach(each => each.open = true)"
  )
  shown = "new Promise(done => setTimeout(() => done(1), 50))"
  browser.call("Runtime.evaluate", expression=shown, awaitPromise=True)
  assert browser.value("document.querySelector('.passage strong').textContent")
  assert browser.value("typeof hostile + document.images.length") == (
    "undefined0"
  )
  assert browser.complaints() == []
  assert len(browser.requests()) == 1
