/* Tables: sorted by any column, saved as CSV, and on a narrow page a card for each row, with every value named. */
"use strict";
const saveAs = (url, name) => Object.assign(document.createElement("a"), { href: url, download: name }).click();

function saveCsv(rows, name) {
  const cell = (value) => (/[",\n]/.test(value ?? "") ? `"${`${value}`.replaceAll('"', '""')}"` : (value ?? ""));
  const lines = Array.isArray(rows[0]) ? rows : [Object.keys(rows[0] ?? {}), ...rows.map(Object.values)];
  const url = URL.createObjectURL(new Blob([lines.map((line) => line.map(cell).join(",")).join("\n") + "\n"], { type: "text/csv" }));
  saveAs(url, `${name}.csv`);
}

/* A table of objects with the same keys. */
function tableOf(rows) {
  const table = document.createElement("table");
  table.className = "rows small";
  const line = (parent, values, kind) => {
    const row = parent.insertRow();
    for (const value of values) {
      const cell = document.createElement(kind);
      if (kind === "th") cell.scope = "col";
      const number = typeof value === "number";
      cell.textContent = number ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : (value ?? "");
      if (number) cell.className = "n";
      row.append(cell);
    }
  };
  line(table.createTHead(), Object.keys(rows[0] ?? {}).map((key) => key.replaceAll("_", " ")), "th");
  const body = table.createTBody();
  for (const row of rows) line(body, Object.values(row), "td");
  return table;
}

const textOf = (cell) => cell.innerText.trim().replace(/\s+/g, " ");

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const names = heads.map(textOf);
  const roles = [["table", "table"], ["thead, tbody", "rowgroup"], ["tr", "row"], ["td", "cell"], ["tbody th", "rowheader"], ["thead th", "columnheader"]];
  table.role = "table"; // cards are no longer tables to a browser
  for (const [selector, role] of roles) for (const element of table.querySelectorAll(selector)) element.role = role;
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => (cell.dataset.name = names[i] ?? ""));
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.ariaSort === "ascending";
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const value = ({ cells: { [i]: cell } }) => cell?.dataset.v ?? (cell ? textOf(cell).replace("−", "-").replaceAll(",", "") : "");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      const compare = ([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // nothing comes last, either way
        const order = Number.isNaN(parseFloat(a) - parseFloat(b)) ? a.localeCompare(b) : parseFloat(a) - parseFloat(b);
        return down ? -order : order;
      };
      table.tBodies[0].append(...rows.sort(compare).map(([, row]) => row));
    };
  });
}

/* Tables of policies have the rows of the figure; one that has none of these stays whole. */
function followFigure(shown) {
  const label = document.querySelector("[data-follow]");
  const apply = () => {
    for (const body of document.querySelectorAll("tbody:has(tr[data-policy])")) {
      const follows = label.firstElementChild.checked && [...body.rows].some((row) => shown.has(row.dataset.policy));
      for (const row of body.rows) row.hidden = follows && !shown.has(row.dataset.policy);
    }
  };
  label.hidden = false;
  label.onchange = apply;
  apply();
}

for (const table of document.querySelectorAll("table.rows")) {
  const csv = Object.assign(document.createElement("button"), { type: "button", textContent: "CSV", className: "csv" });
  const name = table.parentElement.ariaLabel ?? document.getElementById(table.parentElement.getAttribute("aria-labelledby")).textContent;
  csv.ariaLabel = `CSV of the table: ${name}`;
  csv.onclick = () => saveCsv([...table.rows].map((row) => [...row.cells].map((cell) => (cell.querySelector(".histogram") ? cell.querySelector(".histogram").ariaLabel : textOf(cell)))), name);
  table.parentElement.after(csv);
  makeSortable(table);
}
