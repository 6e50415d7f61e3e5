# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Kernels of Debian, for what boots them: sourced where cache, work and say are defined.

# Prints the directory of a kernel's newest package, which is downloaded but not installed.
fetch() { # kernel
  local package dir
  package=$(apt-cache pkgnames "linux-image-$1." | grep -- '-cloud-amd64$' | sort -V | tail -n 1)
  dir=$(find "$cache" -mindepth 1 -maxdepth 1 -name "linux-image-$1.*-cloud-amd64" | sort -V | tail -n 1)
  if [ -n "$package" ] && [ ! -d "$cache/$package" ]; then
    mkdir "$work/deb"
    if (cd "$work/deb" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2) &&
      dpkg -x "$work"/deb/*.deb "$work/deb/x" && depmod -b "$work/deb/x" "$(release "$work/deb/x")"; then
      dir=$cache/$package
      mv -T "$work/deb/x" "$dir" 2>/dev/null || [ -d "$dir" ] # another run was faster
    fi
    rm -rf "$work/deb"
  elif [ -n "$package" ]; then
    dir=$cache/$package
  fi
  [ -n "$dir" ] || { say "apt knows no linux-image-$1.*-cloud-amd64 (it takes Debian 12 and apt-get update), and $cache has none"; return 1; }
  echo "$dir"
}

release() { basename "$1"/lib/modules/*; }
