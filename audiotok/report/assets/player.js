// Listening: the recordings of one clip, switched without losing the position.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

function startPlayer() {
  let clip, deck, takes, request;
  let armed = false; // whether the keys of the player mean it rather than the page

  function show(index) {
    deck?.close();
    clip = data.clips[index];
    deck = new Deck(clip.takes.map((take) => take.audio), find("loop").checked, update);
    takes = clip.takes.map((take, place) => takeRow(take, place));
    find("takes").replaceChildren(...takes.map((take) => take.row));
    find("position").max = clip.seconds;
    find("scale").textContent = `${data.lowest_hz} Hz to ${(clip.highest_hz / 1000).toFixed(1)} kHz, ${data.range_db} dB`;
    update();
  }

  function takeRow(take, place) {
    const row = make("li", "take");
    const button = make("button");
    button.type = "button";
    if (place < 9) button.append(make("kbd", "", `${place + 1}`));
    const isReference = take.run === data.reference;
    button.append(make("span", "", isReference ? "Reference" : data.runs[take.run] || take.run));
    button.append(make("span", "soft", isReference ? "original" : `${take.run} · epoch ${take.epoch}`));
    button.addEventListener("click", () => choose(place));
    const picture = make("div", "picture");
    const image = make("img");
    image.alt = `Spectrogram: ${runName(take.run)}`;
    image.src = take.image;
    const head = make("div", "head");
    picture.append(image, ...hertzMarks(), head);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      choose(place);
      deck.seek(((event.clientX - box.left) / box.width) * clip.seconds);
    });
    row.append(button, picture);
    return { row, button, head };
  }

  function hertzMarks() {
    const span = Math.log(clip.highest_hz / data.lowest_hz);
    return [100, 1000, 10000].filter((hertz) => hertz < clip.highest_hz * 0.9).map((hertz) => {
      const mark = make("span", "hertz", hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`);
      mark.style.bottom = `${(Math.log(hertz / data.lowest_hz) / span) * 100}%`;
      mark.setAttribute("aria-hidden", "true");
      return mark;
    });
  }

  function choose(place) {
    if (place >= clip.takes.length) return;
    armed = true;
    deck.choose(place);
    find("player-status").textContent = `${runName(clip.takes[place].run)}, ${deck.playing ? "playing" : "paused"}`;
    update();
  }

  function update() {
    if (!deck) return;
    takes.forEach((take, place) => {
      take.button.setAttribute("aria-pressed", place === deck.index);
      take.row.classList.toggle("chosen", place === deck.index);
    });
    find("play").textContent = deck.playing ? "Pause" : "Play";
    if (deck.active.error) find("player-status").textContent = "This browser cannot play the recording.";
    move();
    if (!calm.matches) follow();
  }

  function follow() {
    cancelAnimationFrame(request);
    if (deck.playing) request = requestAnimationFrame(() => { move(); follow(); });
  }

  function move() {
    const position = deck.position;
    find("position").value = position;
    find("position").setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
    find("time").textContent = clock(position, clip.seconds);
    for (const take of takes) take.head.style.left = `${Math.min(100, (position / clip.seconds) * 100)}%`;
  }

  options(find("clip"), data.clips.map((each, place) => [place, `${each.name} (${each.takes.length} recordings)`]));
  on("clip", "change", () => show(Number(find("clip").value)));
  on("loop", "change", () => deck.repeat(find("loop").checked));
  on("play", "click", () => { armed = true; deck.toggle(); });
  on("position", "input", () => { armed = true; deck.seek(Number(find("position").value)); });
  find("player").hidden = false;
  show(0);
  return {
    get clip() { return Number(find("clip").value); },
    get deck() { return deck; },
    get armed() { return armed; },
    key: (key) => { if (/^[1-9]$/.test(key)) choose(Number(key) - 1); },
  };
}
