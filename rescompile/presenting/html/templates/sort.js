/* Sorts a table by the column whose button was pressed; a second press turns the order. */
const key = (row, column) => row.cells[column].textContent.trim();
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "\u2195";
    button.setAttribute("aria-label", "sort by " + head.textContent.trim());
    head.append(" ", button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const column = head.cellIndex;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a, column), key(b, column)];
        if (!x || !y) return !x - !y; /* empty cells stay last */
        const [n, m] = [Number(x), Number(y)];
        const order = Number.isNaN(n) || Number.isNaN(m) ? x.localeCompare(y, "en", {numeric: true}) : n - m;
        return up ? order : -order;
      });
      body.append(...rows);
    });
  }
}
