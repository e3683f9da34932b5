"use strict";
// Sorts and filters the table of behaviors. Without it the page shows all of them in one order.
(function () {
  const FEW = 25; // rows shown until more are asked for
  const table = document.getElementById("behaviors");
  if (!table) return;
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  const find = document.getElementById("find");
  const all = document.getElementById("all");
  const count = document.getElementById("count");
  let rows = Array.from(body.rows);
  let whole = rows.length <= FEW;

  function nameOf(row) {
    const cell = row.cells[0];
    return (cell.querySelector("summary") || cell).textContent;
  }

  function show() {
    const wanted = find.value.trim().toLowerCase();
    const fitting = rows.filter((row) => nameOf(row).toLowerCase().includes(wanted));
    const shown = new Set(whole || wanted ? fitting : fitting.slice(0, FEW));
    for (const row of rows) row.hidden = !shown.has(row);
    count.textContent = shown.size + " of " + rows.length + " shown";
    all.hidden = whole;
  }

  function sortBy(column) {
    const header = headers[column];
    const first = column === 0 ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    for (const each of headers) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) =>
      column === 0
        ? sign * nameOf(a).localeCompare(nameOf(b))
        : sign * (Number(a.cells[column].dataset.number) - Number(b.cells[column].dataset.number))
    );
    body.append(...rows);
    show();
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(column));
    header.replaceChildren(button);
  });
  find.addEventListener("input", show);
  all.addEventListener("click", () => {
    whole = true;
    show();
  });
  find.closest(".tools").hidden = false;
  show();
})();
