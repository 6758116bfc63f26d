// Says the numbers under the pointer, or at the place that the arrow keys reach. The page is whole without it.
function point(within) {
  within.querySelectorAll("figure.chart svg").forEach(tell);
}

function tell(chart) {
  const lines = [...chart.querySelectorAll("[data-points]")].map((line) => ({
    name: line.dataset.name,
    points: line.dataset.points.split(";").map((point) => point.split("|")),
  }));
  const steps = [...new Map(lines.flatMap((line) => line.points.map((point) => [point[0], point])))]
    .map((pair) => pair[1])
    .sort((a, b) => a[0] - b[0]);
  const rule = chart.querySelector(".rule");
  const told = chart.parentElement.querySelector(".told");
  const whole = told.textContent;
  let at = -1;

  // Other curves have their points elsewhere: the nearest that is not far.
  const nearest = (points, left) => points.reduce((a, b) => (Math.abs(b[2] - left) < Math.abs(a[2] - left) ? b : a));
  function show(point) {
    rule.setAttribute("x1", point[2]);
    rule.setAttribute("x2", point[2]);
    rule.removeAttribute("hidden");
    const said = lines.flatMap((line) => {
      const own = line.points.find((other) => other[0] === point[0]) ?? nearest(line.points, point[2]);
      return Math.abs(own[2] - point[2]) <= 2 ? [`${line.name} ${own[1]}`] : [];
    });
    told.textContent = `step ${point[0]}: ${said.join(", ")}`;
  }
  function hide() {
    at = -1;
    rule.setAttribute("hidden", "");
    told.textContent = whole;
    told.removeAttribute("aria-live");
  }
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const left = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    if (steps.length) show(nearest(steps, left));
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves) || !steps.length) return;
    event.preventDefault();
    at = Math.min(Math.max(moves[event.key], 0), steps.length - 1);
    told.setAttribute("aria-live", "polite");
    show(steps[at]);
  });
}
point(document);
