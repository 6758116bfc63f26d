// Says the number under the pointer. The page is whole without it.
for (const chart of document.querySelectorAll("figure.chart svg")) {
  const lines = [...chart.querySelectorAll("[data-points]")].map((line) => ({
    name: line.dataset.name,
    points: line.dataset.points.split(";").map((point) => point.split("|")),
  }));
  const rule = chart.querySelector(".rule");
  const told = chart.parentElement.querySelector(".told");
  const whole = told.textContent;
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    let nearest = null;
    for (const line of lines)
      for (const point of line.points)
        if (nearest === null || Math.abs(point[2] - at) < Math.abs(nearest[2] - at)) nearest = point;
    if (nearest === null) return;
    rule.setAttribute("x1", nearest[2]);
    rule.setAttribute("x2", nearest[2]);
    rule.removeAttribute("hidden");
    const said = lines.flatMap((line) => {
      const point = line.points.find((point) => point[0] === nearest[0]);
      return point ? [`${line.name} ${point[1]}`] : [];
    });
    told.textContent = `step ${nearest[0]}: ${said.join(", ")}`;
  });
  chart.addEventListener("pointerleave", () => {
    rule.setAttribute("hidden", "");
    told.textContent = whole;
  });
}
