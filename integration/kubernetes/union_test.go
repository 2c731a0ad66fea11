package kubernetes

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnionPods(t *testing.T) {
	n := startNode(t, "union")
	n.pull("lamina-union")
	p := n.runPod("plain", "lamina-union", 0)
	require.Equal(t, "hello", p.run("echo hello").output())
	c := p.idle()
	kind, _ := c.rootMount()
	require.Equal(t, "overlay", kind)
	u := n.runPod("users", "lamina-union", 100000)
	c = u.idle()
	t.Log(c.exec("cat /proc/self/uid_map; busybox stat -c %u:%g / /etc/passwd"))
}
