import java.net.HttpURLConnection;
import java.net.Proxy;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;

/** A hundred requests at once through NIO, then fifty through blocking sockets. */
public class Client {
    static void check(String answer, int i) {
        if (!answer.equals("/" + i + " " + i * 100)) throw new IllegalStateException("request " + i + ": " + answer);
    }

    public static void main(String[] arguments) throws Exception {
        String base = arguments[0];
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1)
            .proxy(HttpClient.Builder.NO_PROXY).build();
        List<CompletableFuture<String>> answers = new ArrayList<>();
        for (int i = 0; i < 100; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(base + "/" + i))
                .POST(HttpRequest.BodyPublishers.ofByteArray(new byte[i * 100])).build();
            answers.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofString()).thenApply(HttpResponse::body));
        }
        for (int i = 0; i < 100; i++) check(answers.get(i).get(), i);
        for (int i = 0; i < 50; i++) {
            HttpURLConnection connection =
                (HttpURLConnection) URI.create(base + "/" + i).toURL().openConnection(Proxy.NO_PROXY);
            connection.setDoOutput(true);
            connection.getOutputStream().write(new byte[i * 100]);
            check(new String(connection.getInputStream().readAllBytes()), i);
        }
        System.out.println("150 answered");
        System.exit(0);
    }
}
