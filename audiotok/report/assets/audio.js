// Recordings as buffers of Web Audio. A page from disk can read no file, so a recording is a page of its own that posts
// its bytes from within a frame; in a report of one file they stand in the page.

const embedded = JSON.parse(document.getElementById("report-files")?.textContent ?? "{}");

function framed(audio) {
  return new Promise((resolve, reject) => {
    const frame = make("iframe");
    const end = (settle, value) => {
      removeEventListener("message", receive);
      frame.remove();
      settle(value);
    };
    const receive = (event) => {
      if (event.source === frame.contentWindow && event.data instanceof ArrayBuffer) end(resolve, event.data);
    };
    // a page that is missing or damaged loads too, and posts nothing
    frame.addEventListener("load", () => setTimeout(end, 3000, reject, new Error(`${audio} cannot be read`)));
    addEventListener("message", receive);
    frame.hidden = true;
    frame.sandbox = "allow-scripts";
    frame.src = audio;
    document.body.append(frame);
  });
}

const unpacked = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;

async function loaded(audio, rate) {
  const bytes = audio in embedded ? unpacked(embedded[audio]) : await framed(audio);
  return new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
}

const pictureOf = (image) => (image in embedded ? `data:image/png;base64,${embedded[image]}` : image);

// The first `frames` frames of a buffer; silence where it has fewer.
function resized(buffer, frames) {
  if (buffer.length === frames) return buffer;
  const { numberOfChannels, sampleRate } = buffer;
  const other = new AudioBuffer({ length: frames, numberOfChannels, sampleRate });
  for (let channel = 0; channel < numberOfChannels; channel += 1) {
    other.copyToChannel(buffer.getChannelData(channel).subarray(0, frames), channel);
  }
  return other;
}

// Buffers of a clip's recordings, all trimmed to the shortest: by its length none can be told from another.
async function trimmed(takes, rate) {
  const buffers = await Promise.all(takes.map((take) => loaded(take.audio, rate)));
  const frames = Math.min(...buffers.map((buffer) => buffer.length));
  return buffers.map((buffer) => resized(buffer, frames));
}

const channelsOf = (buffer) => Array.from({ length: buffer.numberOfChannels }, (_, channel) => buffer.getChannelData(channel));

// Whether two recordings of a clip are the same where all of them are trimmed alike.
async function someIdentical(takes, rate) {
  if (new Set(takes.map((take) => take.audio)).size < takes.length) return true; // named by content
  if (takes.every((take) => take.seconds === takes[0].seconds)) return false;
  const all = (await trimmed(takes, rate)).map(channelsOf);
  const same = (one, other) => one.length === other.length && one.every((samples, channel) => samples.every((sample, frame) => sample === other[channel][frame]));
  return all.some((one, place) => all.slice(0, place).some((other) => same(one, other)));
}

// Factors that bring all recordings to the loudness of the first, and all together down where one would exceed full scale.
function equalGains(takes) {
  const gains = takes.map((take) => 10 ** ((takes[0].loudness - take.loudness) / 20));
  const highest = Math.max(1, ...takes.map((take, place) => take.peak * gains[place]));
  return gains.map((gain) => gain / highest);
}
