# Source this (bash or zsh) to use the workspace:  source tools/env.sh
#
# It activates .venv and, if the workspace is built, its install folder. ROS 2 is either a full installation, which
# .venv/ros_prefix names, or .venv itself, made from wheels; then .venv is made the ROS prefix here, because wheels
# bring no setup file. With --underlay the workspace's own install folder is left out.
_mbrl_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
_mbrl_shell="${ZSH_VERSION:+zsh}"
_mbrl_shell="${_mbrl_shell:-bash}"

if [ -e "$_mbrl_root/.venv/ros_prefix" ]; then
  _mbrl_ros="$(cat "$_mbrl_root/.venv/ros_prefix")"
  case ":${AMENT_PREFIX_PATH:-}:" in
    *":$_mbrl_ros:"*) ;;
    *) source "$_mbrl_ros/setup.$_mbrl_shell" ;;
  esac
  source "$_mbrl_root/.venv/bin/activate"
elif [ -e "$_mbrl_root/.venv/share/ament_index/resource_index/packages/rclpy" ]; then
  source "$_mbrl_root/.venv/bin/activate"
  _mbrl_site="$(echo "$_mbrl_root"/.venv/lib/python3*/site-packages)"
  export AMENT_PREFIX_PATH="$_mbrl_root/.venv"
  export CMAKE_PREFIX_PATH="$_mbrl_root/.venv"
  LD_LIBRARY_PATH="$_mbrl_root/.venv/lib$(printf ':%s' "$_mbrl_site"/ros_*.libs)"
  export LD_LIBRARY_PATH
  # The wheels restart every interpreter to set the library path, which the lines above have done.
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=kilted
else
  echo "mbrl: there is no environment in $_mbrl_root/.venv yet: run 'make setup' first" >&2
fi

if [ "${1:-}" != --underlay ] && [ -e "$_mbrl_root/install/local_setup.$_mbrl_shell" ]; then
  source "$_mbrl_root/install/local_setup.$_mbrl_shell"
  case ":$PATH:" in
    *":$_mbrl_root/install/mbrl_bringup/lib/mbrl_bringup:"*) ;;
    *) export PATH="$_mbrl_root/install/mbrl_bringup/lib/mbrl_bringup:$PATH" ;;  # the `mbrl` command
  esac
fi
unset _mbrl_root _mbrl_shell _mbrl_ros _mbrl_site
