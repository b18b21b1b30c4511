// Keys of the player and of the blind tests; then everything starts.

function startKeys(player, test) {
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (target.matches("select, textarea, input:not([type=range], [type=checkbox])")) return;
    const owner = test.running ? test : player;
    const inside = target.closest("#player, #test-trial");
    if (key === " ") {
      const pressable = target.matches("button, a, summary, [type=checkbox]");
      if (pressable || !(inside || test.running || player.armed)) return;
      owner.deck?.toggle();
    } else if (key === "ArrowLeft" || key === "ArrowRight") {
      if ((!inside && target !== document.body) || target.matches(".rating input")) return; // tables scroll, scales move
      owner.deck?.seek(owner.deck.position + (key === "ArrowLeft" ? -1 : 1));
    } else if (key.length === 1 || (key === "Enter" && test.running && !target.matches("button, a, summary"))) {
      owner.key(key);
      return;
    } else return;
    event.preventDefault();
  });
}

startCharts();
startTable();
if (data.clips.length) {
  const player = startPlayer();
  startKeys(player, startTests(player));
}
