#!/bin/sh
# Tries an installed wheel from an empty folder: sh tests/try_installed.sh BIN EMPTY DIST POLICY (`make dist` does).
set -eu
unset PYTHONPATH
export JAX_PLATFORMS=cpu
bin=$(cd "$1" && pwd) dist=$(cd "$3" && pwd)
cp -R "$4" "$2/policy"
cd "$2"

# Runs a command; its output must hold the text that comes first.
expect() {
	text=$1
	shift
	echo "  $*"
	output=$("$bin/$@" 2>&1) || { printf '%s\n' "$output"; exit 1; }
	case $output in
	*"$text"*) ;;
	*) printf '%s\n' "$output"; echo "try_installed: '$text' is missing from the output of '$*'" >&2; exit 1 ;;
	esac
}

version=$("$bin/python" -c "import jaxreflow; print(jaxreflow.__version__)")
test -f "$dist/jaxreflow-$version-py3-none-any.whl" || { echo "try_installed: version $version is not in $dist" >&2; exit 1; }
expect site-packages python -c "import jaxreflow; print(jaxreflow.__file__)"
expect reflow jaxreflow-train --help
expect --teacher.path jaxreflow-train reflow --help
expect from-lerobot jaxreflow-convert --help
expect parameters jaxreflow-convert inspect policy

# Hints name the commands that are installed, and the demo does not look for the repository's files.
refuse() {
	text=$1
	shift
	echo "  $*"
	if output=$("$bin/$@" 2>&1); then echo "try_installed: '$*' ended well" >&2; exit 1; fi
	case $output in
	*train.py* | *"python -m convert"* | *site-packages*) printf '%s\n' "$output"; exit 1 ;;
	*"$text"*) ;;
	*) printf '%s\n' "$output"; echo "try_installed: '$text' is missing from the output of '$*'" >&2; exit 1 ;;
	esac
}
refuse 'jaxreflow-train: expected one of' jaxreflow-train nosuch
refuse '--teacher.path is missing' jaxreflow-train demo --dry-run
refuse 'jaxreflow-convert doctor' jaxreflow-convert doctor
"$bin/pip" check
echo "jaxreflow $version works as installed"
