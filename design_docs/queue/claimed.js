// reduce: _count
function (doc) {
  if (doc.state !== "running" || doc._id.length > 20000) return;
  var claim = doc.claim && typeof doc.claim === "object" ? doc.claim : {};
  var known = typeof claim.daemon === "string" && claim.daemon.length <= 200;
  emit([known ? claim.daemon : null, typeof claim.at === "string" && claim.at.length <= 64 ? claim.at : null], null);
}
