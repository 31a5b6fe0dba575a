"""The pages in headless Chromium: they render without errors, fit, sort, and copy."""

import html
import json
import re
import shutil
import subprocess

import pytest
from evaluations import arrays, evaluation, make_metrics, net

from ard_jax.reporting import comparison_page, run_page, tables
from ard_jax.reporting.record import ComparisonRecord, Evaluation, Run
from ard_jax.reporting.tables import Table

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Looks into the frames, which are of the same origin as this page, and writes what it saw into it.
LOOK = """
<pre id="found"></pre>
<script>
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, copied = [];
  Object.defineProperty(view.navigator, "clipboard", { value: { writeText: async (t) => copied.push(t) } });
  for (const one of page.querySelectorAll("details")) one.open = true;
  view.dispatchEvent(new view.Event("resize"));
  const wide = (one) => one.scrollWidth > one.clientWidth;
  const table = page.querySelector("table.sortable"), button = table.querySelectorAll("th button")[1];
  const column = () => [...table.tBodies[0].rows].map((row) =>
    parseFloat(row.cells[1].firstChild.textContent));
  const seen = { name: frame.title, width: view.innerWidth };
  button.click();
  seen.first = column();
  seen.ariaSort = button.parentElement.ariaSort;
  button.click();
  seen.second = column();
  for (const one of table.parentElement.previousElementSibling.querySelectorAll("button")) one.click();
  const odd = [...page.querySelectorAll("table.sortable")].at(-1);
  odd.querySelectorAll("th button")[1].click();
  seen.odd = [...odd.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const scheme = () => view.getComputedStyle(page.body).backgroundColor;
  seen.colours = [scheme()];
  page.querySelector(".theme").click();
  seen.colours.push(scheme());
  return { ...seen, copied,
    pageIsWide: wide(page.documentElement),
    wideTables: [...page.querySelectorAll(".scroll")].filter(wide).length,
    stacked: page.querySelectorAll(".stacked").length,
    drawn: [...page.querySelectorAll("img, svg[role=img]")].length,
    empty: [...page.querySelectorAll("img, svg[role=img]")].filter((one) =>
      one.getBoundingClientRect().width < 20 || (one.complete === false) || one.naturalWidth === 0).length,
  };
}
onload = () => {
  const all = [...document.querySelectorAll("iframe")].map(look);
  document.getElementById("found").textContent = JSON.stringify(all);
  console.log("looked");
};
</script>
"""


ODD = Table(
    ["kind", "value"],
    [["fraction", "8/255"], ["none", "-"], ["thousands", "1,234"], ["negative", "-0.5"],
     ["spread", "0.25 ± 0.10"], ["small", "1e-05"]],
)  # fmt: skip


def run_report():
    values = evaluation()
    values["nets"]["student (best)"]["attacks"] |= {
        f"another_attack_{i}": {"accuracy": 0.5, "ci95": [0.4, 0.6]} for i in range(4)
    }
    made = Evaluation.from_json(values)
    return run_page.render(made, make_metrics(60), None, arrays(values), {"clean": make_metrics(9)})


def comparison():
    done = {}
    for seed in range(2):
        for method, robust in (("sat", 0.5), ("trades", 0.7), ("rslad", 0.6)):
            values = evaluation(nets={"student (best)": net(0.9 - robust / 10 + seed / 50, robust)})
            done[method, seed] = Evaluation.from_json(values)
    record = ComparisonRecord(
        name="a_comparison", main_attack="pgd_sat", seeds=(0, 1), methods=("sat", "trades", "rslad"),
        runs=tuple(Run(method=m, seed=s, status="finished", folder=m) for m, s in done),
        settings={m: {"method.name": m, "optim.lr": 0.1, f"method.{m}": 3} for m in ("sat", "trades")},
    )  # fmt: skip
    return comparison_page.render(comparison_page.summarize(record, done))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser saw: {(page, width): facts}; one start for all."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium): the pages are not looked at")
    folder = tmp_path_factory.mktemp("browser")
    frames = [
        f'<iframe title="{name}" width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for name, made in (("run", run_report()), ("comparison", comparison()))
        for page in [made.replace("</main>", tables.html(ODD) + "</main>")]
        for width in (1280, 390)
    ]
    (folder / "look.html").write_text("<!doctype html>" + "".join(frames) + LOOK)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=5000",
        f"file://{folder / 'look.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in told if '"looked"' not in line] == [] and len(told) == 1
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return {(one["name"], one["width"]): one for one in json.loads(html.unescape(found[1]))}


PAGES = [(name, width) for name in ("run", "comparison") for width in (1280, 390)]


@pytest.mark.parametrize("page", PAGES)
def test_everything_fits_and_is_drawn(seen, page):
    one = seen[page]
    assert not one["pageIsWide"] and one["wideTables"] == 0
    assert one["drawn"] > 0 and one["empty"] == 0
    assert (one["stacked"] > 0) == (page[1] == 390)
    assert len(set(one["colours"])) == 2  # the button changes light to dark


def test_every_kind_of_number_sorts_as_a_number(seen):
    """And what is missing comes last."""
    sorted_ = ["1,234", "0.25 ±\u00a00.10", "8/255", "1e-05", "-0.5", "-"]
    assert [one["odd"] for one in seen.values()] == [sorted_] * 4


@pytest.mark.parametrize("page", PAGES)
def test_tables_sort_and_are_copied_as_sorted(seen, page):
    one = seen[page]
    down = [value for value in one["first"] if value is not None]
    assert len(down) > 2 and down == sorted(down, reverse=True)
    assert one["ariaSort"] == "descending"
    assert [value for value in one["second"] if value is not None] == sorted(down)
    markdown, latex = one["copied"]
    rows = markdown.splitlines()
    assert re.match(r"\| (net|method) \| clean", rows[0]) and rows[1].startswith("| --- | ---: |")
    assert [float(re.search(r"\d+\.\d+", row)[0]) for row in rows[2:]] == one["second"]
    lines = latex.splitlines()
    assert lines[0] == r"\begin{table*}" and lines[-1] == r"\end{table*}"
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert [float(re.search(r"\d+\.\d+", row)[0]) for row in body] == one["second"]
