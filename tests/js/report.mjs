// Runs one scenario and prints what it saw as one JSON value.
// Usage: node SCRIPT SCENARIO '{"url": …}'; an error of the SDK is part of the answer, any other ends the script.

/** Describe an error as a caller of the SDK sees it; `Known` is the SDK's base class. */
function describe(error) {
  const { status, type, code, param, message, requestID } = error;
  return { class: error.constructor.name, status, type, code, param, message, request_id: requestID, body: error.error };
}

/** Run the scenario that the command line names; `Known` is the base class of the SDK's errors. */
export async function run(scenarios, Known) {
  const [name, options] = process.argv.slice(2);
  let seen;
  try {
    seen = await scenarios[name](JSON.parse(options));
  } catch (error) {
    if (!(error instanceof Known)) throw error;
    seen = { error: describe(error) };
  }
  console.log(JSON.stringify(seen));
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
