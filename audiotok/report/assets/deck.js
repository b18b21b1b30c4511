// Several recordings at one position, one of which can be heard; `changed` is called when something has changed.

class Deck {
  constructor(sources, loop, changed) {
    this.index = 0;
    this.players = sources.map((source) => {
      const player = new Audio();
      player.preload = "auto";
      player.loop = loop;
      player.src = source;
      for (const name of ["play", "pause", "ended", "seeked", "timeupdate", "loadedmetadata", "error"]) {
        player.addEventListener(name, () => player === this.active && changed(this));
      }
      return player;
    });
  }
  get active() { return this.players[this.index]; }
  get playing() { return !this.active.paused; }
  get position() { return this.active.currentTime; }
  play() { this.active.play().catch(() => {}); } // refused, or paused before it began: the events tell
  pause() { this.active.pause(); }
  toggle() { if (this.playing) this.pause(); else this.play(); }
  seek(seconds) { this.active.currentTime = Math.max(0, Math.min(seconds, this.active.duration || seconds)); }
  choose(index) {
    if (index === this.index) return;
    const { playing, position } = this;
    this.pause();
    this.index = index;
    this.seek(position);
    if (playing) this.play();
    else this.active.dispatchEvent(new Event("timeupdate"));
  }
  repeat(loop) { for (const player of this.players) player.loop = loop; }
  close() {
    this.pause();
    for (const player of this.players) player.removeAttribute("src");
  }
}

const clock = (position, seconds) => `${position.toFixed(1)} / ${seconds.toFixed(1)} s`;
