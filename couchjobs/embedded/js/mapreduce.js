// Views: PouchDB's own, but for how the functions of design documents are called. PouchDB makes a JavaScript context for
// each document, which takes 0.6 ms; here each function is compiled once, in a context of its own that holds nothing
// else, and that lives on, as CouchDB's does.
'use strict';

const vm = require('vm');
const createAbstractMapReduce = require('pouchdb-abstract-mapreduce');
const {BuiltInError, NotFoundError} = require('pouchdb-mapreduce-utils');

const FILE = 'mrviews'; // where PouchDB notes which views there are

function sum(values) {
  const add = (one, other) => {
    if (typeof other !== 'number') throw new TypeError('builtin _sum function requires map values to be numbers or number arrays');
    return one + other;
  };
  let total = 0;
  for (const value of values) {
    if (!Array.isArray(value) && !Array.isArray(total)) {
      total = add(total, value);
    } else {
      if (!Array.isArray(total)) total = [total];
      [].concat(value).forEach((one, index) => { total[index] = add(total[index] || 0, one); });
    }
  }
  return total;
}

function sumOf(values) {
  try {
    return sum(values);
  } catch (error) {
    throw new BuiltInError(error.message);
  }
}

const BUILT_IN = {
  _count: (keys, values) => values.length,
  _sum: (keys, values) => sumOf(values),
  _stats: (keys, values) => ({
    sum: sumOf(values),
    min: values.reduce((one, other) => Math.min(one, other)),
    max: values.reduce((one, other) => Math.max(one, other)),
    count: values.length,
    sumsqr: values.reduce((total, value) => total + value * value, 0),
  }),
};

const GLOBALS = `
  var sum = ${sum}, log = function () {}, isArray = Array.isArray, toJSON = JSON.parse, emit;
  (function () {
    "use strict";
    var parse = JSON.parse, apply = Reflect.apply, emitted = [];
    emit = function (key, value) { emitted[emitted.length] = [key, value]; };
    return function (given, text) {
      emitted = [];
      var result = apply(given, null, parse(text));
      return {result: result, emitted: emitted};
    };
  })()`;

// What calls a function of that source, and returns its result and what it has emitted. Text alone goes in, and what
// comes out is only looked at, so that the function gets hold of nothing by which it could get out.
function caller(source) {
  const context = vm.createContext({});
  const call = vm.runInContext(GLOBALS, context);
  const given = vm.runInContext(`(${source.trim().replace(/;+\s*(\/\/[^\n]*)?$/, '')}\n)`, context);
  return (values) => call(given, JSON.stringify(values));
}

const MOST = 200;
const known = new Map(); // compiled functions by their source, those used last at the end

function callerOf(source) {
  let call = known.get(source);
  if (!call) {
    try {
      call = caller(source);
    } catch (error) {
      call = () => { throw error; }; // as it is called, where PouchDB tells of it
    }
  }
  known.delete(source);
  known.set(source, call);
  if (known.size > MOST) known.delete(known.keys().next().value);
  return call;
}

function mapper(source, emit) {
  const call = callerOf(source.toString());
  return (doc) => {
    const {emitted} = call([doc]);
    for (let at = 0; at < emitted.length; at++) emit(emitted[at][0], emitted[at][1]);
  };
}

function reducer(source) {
  const name = source.toString();
  if (!name.startsWith('_')) {
    const call = callerOf(name);
    return (...given) => call(given).result;
  }
  const built = Object.keys(BUILT_IN).find((one) => name.startsWith(one));
  if (!built) throw new Error(`${name} is not a supported reduce function.`);
  return BUILT_IN[built];
}

function check(ddoc, view) {
  if (typeof ddoc.views[view].map !== 'string') throw new NotFoundError(`ddoc ${ddoc._id} has no string view named ${view}`);
}

const {query, viewCleanup} = createAbstractMapReduce(FILE, mapper, reducer, check);

module.exports = {query, viewCleanup};
