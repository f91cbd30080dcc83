# Source this to use the workspace:  source tools/env.sh
# It activates .venv and, if the workspace is built, its install folder. Where .venv holds ROS 2 itself
# (made from wheels, see tools/setup.sh), it also makes .venv the ROS prefix, which has no setup.bash of its own.
_mbrl_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
source "$_mbrl_root/.venv/bin/activate"

if [ -e "$_mbrl_root/.venv/share/ament_index/resource_index/packages/rcl_interfaces" ]; then
  _mbrl_site="$(echo "$_mbrl_root"/.venv/lib/python3*/site-packages)"
  export AMENT_PREFIX_PATH="$_mbrl_root/.venv"
  export CMAKE_PREFIX_PATH="$_mbrl_root/.venv"
  LD_LIBRARY_PATH="$_mbrl_root/.venv/lib$(printf ':%s' "$_mbrl_site"/ros_*.libs)"
  export LD_LIBRARY_PATH
  # The wheels restart every interpreter to set the library path, which the lines above have done.
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=kilted
fi

if [ -e "$_mbrl_root/install/local_setup.bash" ]; then
  source "$_mbrl_root/install/local_setup.bash"
fi
unset _mbrl_root _mbrl_site
