"""Tests of jaxreflow: a package, so that one test module can import helpers from another."""
