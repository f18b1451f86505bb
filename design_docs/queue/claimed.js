// reduce: _count
function (doc) {
  if (doc.state === "running") emit([doc.claim ? doc.claim.daemon : null, doc.claim ? doc.claim.at : null], null);
}
