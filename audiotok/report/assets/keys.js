// Keys of the player and of the blind test; then everything starts.

function startKeys(player, test) {
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (target.matches("select, textarea, input:not([type=range], [type=checkbox])")) return;
    const owner = test.deck ? test : player;
    const inside = target.closest("#player, #abx-trial");
    if (key === " ") {
      const pressable = target.matches("button, a, summary, [type=checkbox]");
      if (pressable || !(inside || test.deck || player.armed)) return;
      owner.deck.toggle();
    } else if (key === "ArrowLeft" || key === "ArrowRight") {
      if (!inside && target !== document.body) return; // tables scroll with these
      owner.deck.seek(owner.deck.position + (key === "ArrowLeft" ? -1 : 1));
    } else if (key.length === 1) {
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
  startKeys(player, startTest(player));
}
