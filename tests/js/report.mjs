// Runs scenarios: a line `["SCENARIO", {"url": …}]` of standard input is answered by one of standard output, with
// what was `seen`.  An error of the SDK is part of that; of any other is said that it `failed`.
import { createInterface } from "node:readline";


/** Describe an error as a caller of the SDK sees it; `Known` is the SDK's base class. */
function describe(error) {
  const { status, type, code, param, message, requestID } = error;
  return { class: error.constructor.name, status, type, code, param, message, request_id: requestID, body: error.error };
}

/** Run the scenarios that are asked for; `Known` is the base class of the SDK's errors. */
export async function run(scenarios, Known) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [name, options] = JSON.parse(line);
    let answer;
    try {
      answer = { seen: await scenarios[name](options) };
    } catch (error) {
      answer = error instanceof Known ? { seen: { error: describe(error) } } : { failed: `${error.stack}` };
    }
    console.log(JSON.stringify(answer));
  }
  process.exit(0); // connections kept alive would hold the process
}

/** Nanoseconds on the machine's monotonic clock, the one Python's `time.monotonic_ns` reads. */
export function now() {
  return Number(process.hrtime.bigint());
}

/** Wait until `condition()` is true, for at most ten seconds. */
export async function until(condition) {
  const end = now() + 10e9;
  while (!(await condition())) {
    if (now() > end) throw new Error(`not within 10 s: ${condition}`);
    await new Promise((wake) => setTimeout(wake, 5));
  }
}

/** Count the requests that an upstream of the tests has open. */
export async function open(control) {
  return (await (await fetch(control)).json()).open;
}
