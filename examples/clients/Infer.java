// One query in JSON to a gateway: java Infer.java http://127.0.0.1:PORT MODEL
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

public class Infer {
    public static void main(String[] words) throws Exception {
        String query = """
            {"inputs": [
              {"name": "user", "datatype": "INT64", "shape": [2], "data": [3, 17]},
              {"name": "history", "datatype": "INT64", "shape": [2, 8],
               "data": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}]}
            """;
        HttpRequest request = HttpRequest.newBuilder()
            .uri(URI.create(words[0] + "/v2/models/" + words[1] + "/infer"))
            .timeout(Duration.ofSeconds(5))
            .header("Content-Type", "application/json")
            .header("erless-deadline-ms", "1000")
            .POST(HttpRequest.BodyPublishers.ofString(query))
            .build();
        HttpResponse<String> answer = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .build()
            .send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            System.err.println("HTTP " + answer.statusCode() + ": " + answer.body());
            System.exit(1);
        }
        System.out.println(answer.body());
    }
}
