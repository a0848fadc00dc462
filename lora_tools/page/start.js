startHeat();
startSpectra();
startShrink();

let width = innerWidth;
let pending = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(redraw);
});
