// Draws of a blind test, and what chance alone would do in it.

function draw(count) { // crypto: nothing, the page included, can tell the next one
  const limit = 2 ** 32 - (2 ** 32 % count);
  const value = new Uint32Array(1);
  do crypto.getRandomValues(value); while (value[0] >= limit);
  return value[0] % count;
}

function shuffled(items) { // Fisher and Yates
  const left = [...items];
  return items.map(() => left.splice(draw(left.length), 1)[0]);
}

// `count` items, each of which comes again once all have come.
function dealt(items, count) {
  const order = [];
  while (order.length < count) order.push(...shuffled(items));
  return order.slice(0, count);
}

// Chance of at least `right` of `trials`, each right with probability `share`.
function atLeast(right, trials, share = 0.5) {
  let sum = 0;
  let term = share ** trials; // of all right; then one wrong more at a time
  for (let wrong = 0; wrong <= trials - right; wrong += 1) {
    sum += term;
    term *= ((trials - wrong) / (wrong + 1)) * ((1 - share) / share);
  }
  return Math.min(1, sum);
}

// Fewest of `trials` answers to one side with p < 0.05 of the exact test, or null.
function critical(trials, sides) {
  for (let right = Math.ceil(trials / 2); right <= trials; right += 1) {
    if (sides * atLeast(right, trials) < 0.05) return right;
  }
  return null;
}

// What a number of trials can show, as text: before the first one.
function outlook(trials, share, sides) {
  const power = (count) => {
    const right = critical(count, sides);
    return right === null ? 0 : atLeast(right, count, share);
  };
  const right = critical(trials, sides);
  let enough = 1;
  while (enough <= 400 && power(enough) < 0.8) enough += 1;
  const least = enough > 400 ? "80 % chance needs more than 400 trials" : `80 % chance needs ${enough} trials`;
  const what = sides === 1 ? "right answers" : "answers for one of the two";
  if (right === null) return `No outcome of ${trials} trials has p < 0.05; with ${percent(share)} ${what} ${least}.`;
  return `p < 0.05 needs ${right} of ${trials} ${what}. With ${percent(share)} of them in the long run the chance of that is ${percent(power(trials))}; ${least}.`;
}

const percent = (share) => `${Math.round(share * 100)} %`;
