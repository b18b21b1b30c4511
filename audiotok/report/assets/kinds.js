// The kinds of blind tests: what sounds in a trial, what can be answered, what an answer leaves in the votes, what is
// shown at the end. `runs` are the conditions of a session; in a rating test the reference is the first.

const LETTERS = "ABCDEFGHIJKL";
const MOST_RATED = 10; // and the hidden reference and the anchor: 12, as BS.1534-3 has it at most
const GRADES = ["bad", "poor", "fair", "good", "excellent"];
const grade = (score) => GRADES[Math.min(4, Math.floor(score / 20))];
const nameOf = (run) => (run === data.anchor ? "anchor, 3.5 kHz" : runName(run));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// "of the exact test" holds where the number of trials was fixed before the first
const exactly = (p, sides, votes) =>
  `p = ${p.toPrecision(3)} (exact binomial, ${sides === 1 ? "one" : "two"}-sided).` +
  (votes.length < votes[0].trials ? ` Ended after ${votes.length} of ${votes[0].trials} trials: p holds only if that did not depend on the answers.` : "");

const KINDS = {
  abx: {
    sides: 1,
    keys: "A X B choose · 1 X is A · 2 X is B",
    trial: (clip) => ({ clip, x: draw(2) }),
    signals: (trial, [a, b]) => [["A", a], ["X", [a, b][trial.x]], ["B", b]],
    about: ([a, b]) => ` · A: ${runName(a)} · B: ${runName(b)}`,
    answers: [["1", "X is A"], ["2", "X is B"]],
    ready: (heard) => heard.has(1),
    votes: (trial, [a, b], given) => [{ a, b, x: [a, b][trial.x], answer: [a, b][given], correct: given === trial.x ? 1 : 0 }],
    result(votes) {
      const correct = votes.reduce((sum, vote) => sum + vote.correct, 0);
      return {
        score: `${correct} of ${votes.length} correct; by guessing alone this or better has ${exactly(atLeast(correct, votes.length), 1, votes)}`,
        head: ["trial", "clip", "X was", "answer", "correct"],
        rows: votes.map((vote) => [vote.trial, vote.clip, runName(vote.x), runName(vote.answer), vote.correct ? "yes" : "no"]),
      };
    },
  },
  preference: {
    sides: 2,
    keys: "A B choose · 1 A is better · 2 B is better · 0 no preference",
    trial: (clip) => ({ clip, first: draw(2) }),
    signals: (trial, runs) => [["A", runs[trial.first]], ["B", runs[1 - trial.first]]],
    about: () => "",
    answers: [["1", "A is better"], ["2", "B is better"], ["0", "No preference"]],
    ready: (heard) => heard.size === 2,
    votes: (trial, runs, given) => {
      const order = [runs[trial.first], runs[1 - trial.first]];
      return [{ a: runs[0], b: runs[1], position: order.indexOf(runs[0]) + 1, answer: given === 2 ? "none" : order[given] }];
    },
    result(votes) {
      const { a, b } = votes[0];
      const [forA, forB] = [a, b].map((run) => votes.filter((vote) => vote.answer === run).length);
      const decided = forA + forB;
      const p = decided ? Math.min(1, 2 * atLeast(Math.max(forA, forB), decided)) : 1;
      return {
        score: `${forA} for ${runName(a)}, ${forB} for ${runName(b)}, ${votes.length - decided} without preference; sign test of the ${decided}: ${exactly(p, 2, votes)}`,
        head: ["trial", "clip", "preferred"],
        rows: votes.map((vote) => [vote.trial, vote.clip, vote.answer === "none" ? "none" : runName(vote.answer)]),
      };
    },
  },
  mushra: {
    rated: true,
    keys: "R the reference · A B C … choose · ← → on a scale rate · Enter goes on",
    trial: (clip, runs) => ({ clip, order: shuffled(runs.filter((run) => takeOf(clip, run)).map((run) => runs.indexOf(run))) }),
    signals: (trial, runs) => [["Reference", runs[0]], ...trial.order.map((place, index) => [LETTERS[index], runs[place]])],
    about: () => "",
    answers: [["Enter", "Next"]],
    ready: (heard, scores, count) => scores.size === count - 1 && Array.from(scores.keys()).every((place) => heard.has(place)),
    votes: (trial, runs, given, scores) =>
      trial.order.map((place, index) => ({ condition: runs[place], position: index + 1, score: scores.get(index + 1) })),
    result(votes) {
      const of = (run) => votes.filter((vote) => vote.condition === run).map((vote) => vote.score);
      const hidden = of(data.reference);
      const missed = hidden.filter((score) => score < 90).length;
      const kept = missed <= 0.15 * hidden.length;
      const rows = [...new Set(votes.map((vote) => vote.condition))].map((run) => [nameOf(run), mean(of(run)).toFixed(1), Math.min(...of(run)), Math.max(...of(run)), of(run).length]);
      return {
        score: `The hidden reference is below 90 in ${missed} of ${hidden.length} clips. ` +
          (kept ? "These ratings count in the pooled result." : "That is more than 15 %: by the rule of BS.1534-3 the pooled result leaves this listener out."),
        head: ["condition", "mean", "lowest", "highest", "clips"],
        rows: rows.sort((one, other) => other[1] - one[1]),
      };
    },
  },
};

function takeOf(clip, run) {
  const { anchor, takes } = data.clips[clip];
  return (run === data.anchor ? anchor : takes.find((take) => take.run === run)) ?? undefined;
}
