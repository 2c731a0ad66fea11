package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// A listening is an address that the settings have something listen on.
type listening struct {
	key, value  string
	network, at string // in one form, whatever the value's
}

// validateListening reports the keys that would have two things listen on one socket or port. Values that are wrong in themselves are
// passed over.
func (s settings) validateListening() error {
	var all []listening
	for _, l := range []listening{
		{key: "address", value: s.Address, network: "unix", at: s.Address},
		{key: "admin.address", value: s.adminAddress(), network: "unix", at: s.adminAddress()},
		{key: "containerd.address", value: s.Containerd.Address, network: "unix", at: s.Containerd.Address},
		s.local("pprof", s.Pprof), s.local("metrics.address", s.Metrics.Address),
	} {
		if l.network == "unix" && filepath.IsAbs(l.at) {
			l.at = resolved(l.at)
			all = append(all, l)
		}
		if l.network == "tcp" && !strings.HasSuffix(l.at, ":0") { // for which the kernel chooses another each time
			all = append(all, l)
		}
	}
	var errs []error
	for i, l := range all {
		for _, other := range all[:i] {
			if l.network == other.network && l.at == other.at {
				errs = append(errs, fmt.Errorf("%s: %q is what %s has too (%q): each needs an address of its own", l.key, l.value, other.key, other.value))
			}
		}
	}
	return errors.Join(errs...)
}

func (settings) local(key, value string) listening {
	network, at, err := localNetwork(key, value)
	if err != nil {
		return listening{}
	}
	if host, port, err := net.SplitHostPort(at); network == "tcp" && err == nil {
		n, _ := strconv.Atoi(port) // it is a number
		at = net.JoinHostPort(net.ParseIP(host).String(), strconv.Itoa(n))
	}
	return listening{key, value, network, at}
}

// resolved returns a path that leads through no links, as far as its directory is there: /run and /var/run are one.
func resolved(path string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return filepath.Clean(path)
}
