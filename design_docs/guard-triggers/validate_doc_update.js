// Who may write triggers: workers and administrators, for a trigger makes jobs for any worker.
function (newDoc, oldDoc, userCtx) {
  function forbid(reason) {
    throw({forbidden: "couchjobs: " + reason});
  }
  if (newDoc._id.indexOf("_design/") === 0) return; // only administrators of the database may, CouchDB sees to it
  if (userCtx.roles.indexOf("_admin") < 0 && userCtx.roles.indexOf("couchjobs-worker") < 0) {
    forbid("writing triggers needs the role couchjobs-worker");
  }
  if (newDoc._deleted) return;
  var types = ["@at", "@client", "@cron", "@daily", "@event", "@every", "@hourly", "@in", "@monthly", "@webhook",
    "@weekly"];
  if (types.indexOf(newDoc.type) < 0) forbid("type must be one of " + types.join(", "));
  if (typeof newDoc.worker !== "string" || !newDoc.worker) forbid("worker must be text");
  if ("arguments" in newDoc && typeof newDoc.arguments !== "string") forbid("arguments must be text");
}
