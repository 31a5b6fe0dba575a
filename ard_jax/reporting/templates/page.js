"use strict";
// Tables sort, are copied, and fit the window; the page's colours can be chosen.

const MISSING = new Set(["", "-", "nan"]);
const HEAD_LINES = { markdown: 2, latex: 7 }; // above the first row of a copied table

function value(cell) {
  const text = (cell.firstChild?.textContent ?? "").trim().replace(/(\d),(?=\d{3})/g, "$1");
  const number = text.match(/^[-+]?[\d.]+(e[-+]?\d+)?/);
  const below = text.match(/^[-+]?[\d.]+\/(\d+)$/); // 8/255
  if (MISSING.has(text)) return null;
  return number ? parseFloat(number[0]) / (below ? below[1] : 1) : text;
}

function compare(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function element(name, text, action) {
  const made = document.createElement(name);
  made.textContent = text;
  if (action) made.addEventListener("click", action);
  return made;
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(element("textarea", text));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

function setUp(table) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows]; // as the page has them
  let order = rows;

  function sort(column) {
    const values = new Map(rows.map((row) => [row, value(row.cells[column])]));
    const known = rows.filter((row) => values.get(row) !== null);
    const missing = rows.filter((row) => values.get(row) === null);
    const before = heads[column].ariaSort;
    // Numbers: the highest first; words from A. Then the other way round.
    const first = known.some((row) => typeof values.get(row) === "string") ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = before === first ? other : first;
    const sign = direction === "ascending" ? 1 : -1;
    known.sort((a, b) => sign * compare(values.get(a), values.get(b)));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].ariaSort = direction;
    order = [...known, ...missing];
    table.tBodies[0].append(...order);
  }

  function text(form) {
    const lines = table.dataset[form].trimEnd().split("\n"), start = HEAD_LINES[form];
    const body = order.map((row) => lines[start + rows.indexOf(row)]);
    return [...lines.slice(0, start), ...body, ...lines.slice(start + rows.length)].join("\n") + "\n";
  }

  const label = element("label", "Sort by "), select = element("select", "");
  label.append(select);
  select.append(element("option", "…"));
  heads.forEach((head, column) => {
    const name = head.textContent, words = head.firstChild;
    rows.forEach((row) => {
      row.cells[column].dataset.label = name.replace(/(?<=[_.])/g, "\u200b"); // where it may break
      row.cells[column].classList.toggle("none", value(row.cells[column]) === null);
    });
    words.replaceChildren(...name.split(/(?<=[_.])/).flatMap((part) => [part, document.createElement("wbr")]));
    select.append(element("option", name));
    const button = element("button", "", () => sort(column));
    button.append(words);
    head.append(button);
  });
  select.addEventListener("change", () => select.selectedIndex && sort(select.selectedIndex - 1));
  const tools = element("div", "");
  tools.className = "tools";
  tools.append(label);
  for (const [form, title] of [["markdown", "Copy Markdown"], ["latex", "Copy LaTeX"]]) {
    const button = element("button", title, () => copy(text(form), button));
    button.ariaLive = "polite";
    tools.append(button);
  }
  table.parentElement.before(tools);
}

function fit() {
  for (const frame of document.querySelectorAll(".scroll")) {
    const wide = () => frame.scrollWidth > frame.clientWidth;
    frame.classList.remove("tight", "stacked");
    if (wide()) frame.classList.add("tight");
    if (wide()) frame.classList.replace("tight", "stacked");
    frame.previousElementSibling?.classList.toggle("has-stacked", frame.classList.contains("stacked"));
  }
}

document.querySelectorAll("table.sortable").forEach(setUp);
document.querySelectorAll("details").forEach((one) => one.addEventListener("toggle", fit));
for (const event of ["resize", "beforeprint", "afterprint"]) addEventListener(event, fit);
fit();

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = element("button", "", () => {
  root.style.colorScheme = (root.style.colorScheme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark";
});
theme.textContent = "Light / dark";
theme.className = "theme";
document.querySelector("main").prepend(theme);
